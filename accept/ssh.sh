#!/usr/bin/env bash
# Hosts over SSH, with real sshds: a point per promise. See accept/lib.sh for the form;
# ONLY="WORD..." runs the parts whose names begin so.
source "$(dirname "$0")/lib.sh"
wants() { [ -z "${ONLY:-}" ] || for w in $ONLY; do case $1 in "$w"*) return 0 ;; esac; done; [ -z "${ONLY:-}" ]; }

# ---------------------------------------------------------------- 1 reaching hosts
if wants reach; then
	gotest reach.dial ./backends/ssh/dial .
	gotest reach.asks-at-the-terminal ./launcher '^TestSSHAsks$'
	gotest reach.no-terminal ./launcher '^TestSSHCannotAsk$'
fi

# ---------------------------------------------------------------- 2 provisioning
if wants provision; then
	gotest provision.logins ./backends/ssh '^TestLogins$'
	gotest provision.cut-copy ./backends/ssh '^TestCutCopy$'
	gotest provision.two-copies ./backends/ssh '^TestTwoCopies$'
	gotest provision.laws ./backends/ssh '^TestLawsOverSSH$'
	gotest provision.away ./backends/ssh '^TestHostIsAway$'
	gotest provision.failed-node ./backends/ssh '^TestFailedNode$'
	gotest host.requests ./backends/ssh/host '^TestF'
fi

# ---------------------------------------------------------------- 4 routes
if wants route; then
	gotest route.stdio ./backends/ssh/host '^TestRoute$'
fi

# ---------------------------------------------------------------- 5 the cluster: up, run, a changed spec, down
if wants cluster; then
	gotest cluster.up-run-down ./launcher '^TestSSH$'
	gotest cluster.machines ./head/core '^TestM'
fi
