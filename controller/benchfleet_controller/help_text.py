"""What `benchfleet --help` says; made by docs/regenerate.py."""

HELP = """\
usage: benchfleet [-h] [--version] COMMAND ...

Benchmarks local language models across machines: which hardware, device and model
is better for this work, by how much, and how sure.

options:
  -h, --help  show this help message and exit
  --version   show program's version number and exit

commands:
  COMMAND
    demo      the main job on this machine, with everything embedded
    run       benchmark models on hosts
    runs      list runs, newest first
    show      one run's results, a line a case
    collect   fetch what hosts still hold, e.g. after Ctrl-C
    cancel    end a run's jobs on their hosts and fetch what they have
    compare   which is better, by how much, how sure
    score     how good the answers are, by what was expected or by a judge
    select    which model to take under limits, and why
    baseline  named results that later runs are compared with
    report    write a run's report to a file
    hosts     known hosts, and whether they answer
    models    what a host can serve
    pull      fetch models on hosts before a run needs them
    rm        remove a model's files from hosts
    unload    take a model out of hosts' memory
    certs     a lab's certificates: who may reach which agent
    completion
              how a shell completes benchfleet's commands
    doctor    what is wrong with a host, and what to do about it

examples:
  benchfleet demo
  benchfleet run --host lab1=192.168.1.20 --host lab2=192.168.1.21 --model smollm2-135m
  benchfleet compare last --by host
  benchfleet report last -o report.md
"""
