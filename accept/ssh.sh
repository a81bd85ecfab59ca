#!/usr/bin/env bash
# Hosts over SSH, with real sshds: a point per promise. See accept/lib.sh for the form;
# ONLY="WORD..." runs the parts whose names begin so.
source "$(dirname "$0")/lib.sh"
export LAUNCHER_TEST_SSH=all
BESIDE=4 # most of it waits

# ---------------------------------------------------------------- 1 reaching hosts
if wants reach; then
	gotest reach.dial ./backends/ssh/dial .
	gotest reach.asks-at-the-terminal ./launcher '^TestSSHAsks$'
	rootgotest reach.kerberos ./launcher '^TestRootSSHKerberos$'
	gotest reach.no-terminal ./launcher '^TestSSHCannotAsk$'
	gotest reach.agent-certificate-jumps ./launcher '^TestSSHAgent$'
fi

# ---------------------------------------------------------------- 2 provisioning
if wants provision; then
	gotest provision.logins ./backends/ssh '^TestLogins$'
	gotest provision.cut-copy ./backends/ssh '^TestCutCopy$'
	gotest provision.two-copies ./backends/ssh '^TestTwoCopies$'
	gotest provision.hosts-from-hosts ./backends/ssh '^TestHostsFromHosts$'
	gotest provision.bad-givers ./backends/ssh '^TestFromHostsFails$|^TestSpread'
	gotest provision.old-binaries ./backends/ssh '^TestOldBinaries$'
	gotest provision.laws ./backends/ssh '^TestLawsOverSSH$'
	gotest provision.away ./backends/ssh '^TestHostIsAway$'
	gotest provision.failed-node ./backends/ssh '^TestFailedNode$'
	gotest host.requests ./backends/ssh/host '^TestF'
fi

# ---------------------------------------------------------------- 3 the broker: the head on a host, the laptop closed
if wants broker; then
	gotest broker.remote ./broker '^TestRemote'
	gotest broker.record ./backends/ssh/host 'Record$'
	gotest broker.head-on-host ./launcher '^TestSSHHead$'
	gotest broker.laptop-dies ./launcher '^TestSSHLaptop$'
	gotest broker.emit ./launcher '^TestSSHEmit$'
	gotest broker.asleep ./launcher '^TestSSHAsleep'
	gotest broker.host-away ./launcher '^TestSSHLeft$/^pool'
fi

# ---------------------------------------------------------------- the head survives the loss of its host
if wants head; then
	gotest head.where ./configs '^TestHeadPool$'
	gotest head.first-host ./launcher '^TestSSHHeadAuto$'
	gotest head.copies ./wire/follow .
	gotest head.machine-lost ./head '^TestMachineLost$'
	gotest head.acknowledged-with-copies ./head '^TestFollowersHaveIt$|^TestMachineLostAnyTime$'
	gotest head.working-directories ./head '^TestTreesFollow$'
	gotest head.copies-impossible ./head '^TestFollowersCannot$'
	gotest head.lonely ./head '^TestLonely$'
	gotest head.checkpoints-gone './head ./head/core' '^TestCheckpointsGone$|^TestLostCheckpoints$'
	gotest head.checkpoints-gone-why ./head/core '^TestTranscripts$/^lostchecks$'
	gotest head.output-of-lost ./head/core '^TestTranscripts$/^lostlogs$'
	gotest head.lost-in-array ./launcher '^TestSSHHeadLost$'
fi

# ---------------------------------------------------------------- 4 routes
if wants route; then
	gotest route.stdio ./backends/ssh/host '^TestRoute$'
	gotest route.no-network ./launcher '^TestSSHRoute$'
	gotest route.relay ./launcher '^TestSSHRelay$'
	gotest route.through-a-node ./agent '^TestRoute|^TestProbe$'
	gotest route.sockets ./head/core '^TestTranscripts$/^sockets$'
	gotest route.sockets-seen ./launcher '^TestOpensSockets$'
fi

# ---------------------------------------------------------------- 5 the cluster: up, run, a changed spec, down
if wants cluster; then
	gotest cluster.up-run-down ./launcher '^TestSSH$'
	gotest cluster.machines ./head/core '^TestM'
fi

# ---------------------------------------------------------------- bad input, an item each
if wants bad; then
	gotest bad.wrong-key ./backends/ssh/dial '^TestKeys$'
	gotest bad.changed-key ./backends/ssh/dial '^TestChangedKey$'
	gotest bad.unknown-key ./backends/ssh/dial '^TestUnknownKey$'
	gotest bad.no-sftp ./backends/ssh/dial '^TestNoSFTP$'
	gotest bad.max-sessions ./backends/ssh/dial '^TestFewSessions$'
	gotest bad.max-startups ./backends/ssh/dial '^TestFewStartups$'
	gotest bad.silent-host ./backends/ssh/dial '^TestWhatIsNotThere$'
	gotest bad.no-forwarding ./backends/ssh/dial '^TestNoForwarding$'
	gotest bad.link-cut-in-copy ./backends/ssh '^TestCutLink$'
	gotest bad.other-version ./backends/ssh '^TestOtherVersion$'
	gotest bad.duplicate-host ./configs '^TestClusterFaults$/^ssh_twice$'
	rootgotest bad.disk-full-in-copy ./backends/ssh '^TestRootDiskFull$'
	rootgotest bad.shells ./backends/ssh '^TestRootHosts$/^(plain|csh|fish|nologin|no_shell)$'
	rootgotest bad.rc-files ./backends/ssh '^TestRootHosts$/^(noisy|endless|rc_exits)$'
	rootgotest bad.homes ./backends/ssh '^TestRootHosts$/^(space|quotes|missing|unwritable|read-only|noexec|asked_for|full)$'
	rootgotest bad.other-architecture ./backends/ssh '^TestRootHosts$/^arm64$'
fi

# ---------------------------------------------------------------- 7 ssh and cp
if wants reach-nodes; then
	gotest reach-nodes.local ./launcher '^TestReach$'
	gotest reach-nodes.stdio-only ./launcher '^TestSSHReach$'
	gotest reach-nodes.bad-copies ./launcher '^TestBadCopies$'
fi

# ---------------------------------------------------------------- 7 doctor
if wants doctor; then
	gotest doctor.findings ./backends/ssh '^TestExamine$'
	gotest doctor.spec ./launcher '^TestSSHDoctor$'
fi

# ---------------------------------------------------------------- pretend hosts: networks of their own, cut, slow and lossy
if wants demo; then
	rootgotest demo.pretend-hosts ./internal/testkit '^TestRootPretendHosts$'
fi
BESIDE=8
if wants demo && rooted demo.four-hosts; then
	nettest demo.files TestRootNet
	nettest files.outputs TestRootNetOutputs
	nettest files.program TestRootNetProgram
	nettest files.killed TestRootNetOutputsKilled
	nettest files.down TestRootNetOutputsDown
	nettest demo.four-hosts TestRootNetDemo
fi
if wants net && rooted net.hosts; then # a link cut in a job, for a minute, for longer than `lost`
	nettest net.laptop-away TestRootNetLaptop
	nettest net.host-cut TestRootNetCut
	nettest net.head-cut-and-lost TestRootNetHead
	nettest head.training TestRootNetHeadTraining
	nettest net.power-off TestRootNetPower
	nettest net.two-factors TestRootNetTwoFactors
	nettest net.loss-delay-rate TestRootNetBad
	nettest net.hosts-from-hosts TestRootNetSpread
	nettest net.arm64 TestRootNetARM64
	nettest net.two-networks TestRootNetWays
fi

# ---------------------------------------------------------------- 5 elastic
if wants elastic; then
	gotest elastic.hosts-and-specs ./launcher '^TestSSHElastic$'
	gotest elastic.proof-of-death ./launcher '^TestSSHProof$'
fi

# ---------------------------------------------------------------- 6 boxes that people share
if wants box; then
	rootgotest box.two-users ./launcher '^TestRootTwoUsers$'
	gotest box.foreign-processes ./launcher '^TestSSHForeign$'
	gotest box.locks ./agent '^TestClaim'
	gotest box.load ./agent/detect '^TestOthers$|^TestOwnLoad$'
fi
wait
