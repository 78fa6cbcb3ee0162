<#
.SYNOPSIS
Starts benchfleet-agent at each logon of the current user, as a scheduled task.

.DESCRIPTION
A task in the user's session and not a service: session 0 sees neither the user's models nor, with some drivers, the GPU.
Needs no administrator. Run again to change the settings; -Remove takes the task away and leaves the agent's data.

.EXAMPLE
.\install-windows-agent.ps1 -Config $HOME\agent.toml
#>
[CmdletBinding(SupportsShouldProcess)]
param(
    # The program; by default the one on PATH.
    [string] $Agent,
    # agent.toml; by default the agent's own defaults.
    [string] $Config,
    [string] $TaskName = 'benchfleet-agent',
    [switch] $Remove
)
Set-StrictMode -Version 3
$ErrorActionPreference = 'Stop'

if ($Remove) {
    if ($PSCmdlet.ShouldProcess($TaskName, 'remove the scheduled task')) {
        Stop-ScheduledTask -TaskName $TaskName -ErrorAction SilentlyContinue
        Unregister-ScheduledTask -TaskName $TaskName -Confirm:$false
    }
    return
}

if (-not $Agent) {
    $found = Get-Command benchfleet-agent -CommandType Application -ErrorAction SilentlyContinue | Select-Object -First 1
    if (-not $found) { throw "benchfleet-agent is not on PATH; install it with: pipx install 'benchfleet[agent]', or name it with -Agent" }
    $Agent = $found.Source
}
$arguments = 'serve'
if ($Config) { $arguments += ' --config "{0}"' -f (Resolve-Path -LiteralPath $Config).Path }

$user = [Security.Principal.WindowsIdentity]::GetCurrent().Name
$action = New-ScheduledTaskAction -Execute $Agent -Argument $arguments
$trigger = New-ScheduledTaskTrigger -AtLogOn -User $user
$principal = New-ScheduledTaskPrincipal -UserId $user -LogonType Interactive -RunLevel Limited
# Priority 4 is that of a normal program. A task's default, 7, runs below normal and would slow what is measured.
$settings = New-ScheduledTaskSettingsSet -Priority 4 -ExecutionTimeLimit ([TimeSpan]::Zero) `
    -RestartCount 3 -RestartInterval (New-TimeSpan -Minutes 1) -MultipleInstances IgnoreNew `
    -AllowStartIfOnBatteries -DontStopIfGoingOnBatteries

if ($PSCmdlet.ShouldProcess($TaskName, "run $Agent $arguments at logon of $user")) {
    Register-ScheduledTask -TaskName $TaskName -Action $action -Trigger $trigger -Principal $principal -Settings $settings -Force | Out-Null
    Start-ScheduledTask -TaskName $TaskName
    Write-Output "$TaskName runs now and at each logon of $user."
}
