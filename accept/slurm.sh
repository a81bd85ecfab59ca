#!/usr/bin/env bash
# Slurm, a real one from Debian's packages on loopback that comes and goes with the tests:
# a point per promise. See accept/lib.sh for the form; ONLY="WORD..." runs the parts whose
# names begin so.
source "$(dirname "$0")/lib.sh"
export LAUNCHER_TEST_SLURM=all
if ! PATH=$PATH:/usr/sbin command -v slurmctld slurmd sbatch munged >/dev/null; then
	skip slurm.installed "Debian's slurmctld, slurmd, slurm-client and munge are not there"
	exit 0
fi

# ---------------------------------------------------------------- what is measured, alone
if wants cluster; then
	gotest cluster.start ./launcher '^TestSlurmStart$'
fi

BESIDE=4 # the others mostly wait: for Slurm, for times to be over

# ---------------------------------------------------------------- 4 four minutes of work in allocations of one minute, beside all that follows
if wants training; then
	LIMIT=900s gotest training.allocations ./launcher '^TestSlurmTraining$'
	gotest training.head-killed ./launcher '^TestTrain$'
fi

# ---------------------------------------------------------------- 1 jobs, and what becomes of them
if wants jobs; then
	gotest jobs.script ./backends/slurm '^TestScript$'
	gotest jobs.laws ./backends/slurm '^TestLaws$'
	gotest jobs.ends ./backends/slurm '^TestEnds$'
	gotest jobs.time-range ./backends/slurm '^TestTimeRange$'
	gotest jobs.reasons ./backends/slurm '^TestReasonsInWords$'
	gotest jobs.grant ./backends/slurm '^TestGrant$'
	gotest jobs.versions ./backends/slurm '^TestVersions|^TestUsesAreFound$'
fi

# ---------------------------------------------------------------- 2 a controller that does not answer
if wants controller; then
	gotest controller.lost-answer ./backends/slurm '^TestLostAnswer$'
	gotest controller.twin ./backends/slurm '^TestTwin$'
	gotest controller.away ./backends/slurm '^TestControllerAway$'
	gotest controller.slow ./backends/slurm '^TestHearing$'
	gotest controller.down-says-why ./head/core '^TestDownSaysWhy$'
	gotest controller.few-calls ./backends/slurm '^TestFewCalls$'
	gotest controller.array ./launcher '^TestSlurmCalls$'
	gotest controller.idle ./launcher '^TestSlurmIdle$'
fi

# ---------------------------------------------------------------- nodes and starts that fail
if wants lost; then
	gotest lost.nodes ./backends/slurm '^TestLostNodes$'
	gotest lost.prolog ./backends/slurm '^TestPrologFails$'
	gotest lost.no-slurm ./backends/slurm '^TestNoSlurm$'
	gotest lost.said ./backends/slurm '^TestComplains$'
fi

# ---------------------------------------------------------------- what people and sites do to jobs
if wants bad; then
	gotest bad.controller-answers-late ./backends/slurm '^TestAnswersLate$'
	gotest bad.controller-stopped ./launcher '^TestSlurmControllerStopped$'
	gotest bad.suspended ./launcher '^TestSlurmSuspended$'
	gotest bad.takes-no-more ./launcher '^TestSlurmTakesNoMore$'
	gotest bad.let-in-at-last ./backends/slurm '^TestLetInAtLast$'
	gotest bad.taken-back ./backends/slurm '^TestUnask$'
	gotest bad.taken-back-begun ./head/core '^TestBeginsWhenTakenBack$'
	gotest bad.from-outside ./backends/slurm '^TestJobsFromOutside$'
	gotest bad.silent-and-said ./head/core '^TestSilentAndSaid$'
fi

# ---------------------------------------------------------------- 3 the cluster: up, run, down
if wants cluster; then
	gotest cluster.up-run-down ./launcher '^TestSlurmCluster$'
	gotest cluster.demand ./launcher '^TestSlurmDemand$'
	gotest cluster.refused ./launcher '^TestSlurmRefused$'
	gotest cluster.walltime ./launcher '^TestSlurmWalltime$'
	gotest cluster.ends ./launcher '^TestSlurmEnds$'
	gotest cluster.preempted ./launcher '^TestSlurmPreempted$'
	gotest cluster.notice ./head/core '^TestNotice$'
	gotest cluster.notice-of-agent ./agent '^TestNotice$'
	gotest cluster.successor ./head/core '^TestSuccessor'
	gotest cluster.lead ./head/core '^TestLead$|^TestEndComesNearer$'
	gotest cluster.chain ./head/core '^TestChain$'
	gotest cluster.unneeded ./head/core 'TakenBack$|^TestMaxJobsIsNotOverrun$'
	gotest cluster.learned ./head/core '^TestLearnedStays$'
	gotest cluster.time-request ./head/core '^TestTimeRequest$'
	gotest cluster.together ./head/core '^TestNodesOfOneAllocation|^TestRefusedForGood$'
fi

# ---------------------------------------------------------------- accounts, QOS and their limits, in a slurmdbd over a database of its own
if wants accounts; then
	if PATH=$PATH:/usr/sbin command -v slurmdbd mariadbd sacctmgr sacct >/dev/null; then
		gotest accounts.kept ./internal/testkit/slurmtest '^TestAccounts$'
		gotest accounts.refused ./launcher '^TestSlurmAccounts$'
		gotest accounts.limits ./backends/slurm '^TestLimits$'
		gotest accounts.preempted-by-qos ./launcher '^TestSlurmPreemptedByQOS$'
		gotest accounts.doctor ./backends/slurm '^TestExamineRealAccounts$'
		gotest accounts.limits-beforehand ./backends/slurm '^TestLimitsBeforehand$'
		gotest accounts.forgotten ./backends/slurm '^TestForgotten$'
	else
		skip accounts.installed "Debian's slurmdbd, slurm-wlm-mysql-plugin and mariadb-server-core are not there"
	fi
fi

# ---------------------------------------------------------------- 4 exactly what was granted
if wants gres; then
	gotest gres.numbers ./backends/slurm '^TestGrantedGPUs$|^TestGrantOf$|^TestPerNode$'
	gotest gres.without-driver ./launcher '^TestSlurmGres$'
	gotest gres.fewer-cores ./launcher '^TestSlurmFewerCores$'
fi

# ---------------------------------------------------------------- the head in the allocations
if wants head; then
	gotest head.when ./head/core '^TestHead'
	gotest head.moves ./launcher '^TestHeadMoves$'
	gotest head.allocations ./launcher '^TestSlurmHeadMoves$'
	gotest head.lost ./launcher '^TestHeadNodeLost$'
	gotest head.front-killed ./launcher '^TestSlurmHeadFront$'
	gotest head.suspended ./launcher '^TestSlurmHeadSuspended$'
	gotest head.woken-writes ./head/record '^TestApart$'
	gotest head.woken-acknowledges ./head '^TestReplaced'
fi

# ---------------------------------------------------------------- 5 in a batch script
if wants allocation; then
	gotest allocation.run ./launcher '^TestSlurmAllocation$'
	gotest allocation.work ./launcher '^TestSlurmBatchWork$'
	gotest allocation.emit ./launcher '^TestSlurmEmit$'
fi

# ---------------------------------------------------------------- 5 what sites are like
if wants site; then
	gotest site.setup ./agent '^TestSetup'
	gotest site.setup-shown ./launcher '^TestSlurmSetup$'
	gotest site.doctor ./backends/slurm '^TestSiteFacts$|^TestExamine'
	gotest site.propose ./launcher '^TestSlurmPropose$'
	gotest site.container-commands ./agent/container '^Test'
	gotest site.container-local ./launcher '^TestPodman$'
	gotest site.container-slurm ./launcher '^TestSlurmPodman$'
	gotest site.no-shared-home ./launcher '^TestSlurmNoSharedHome$'
	gotest site.firewall ./backends/slurm '^TestGate|^TestWay'
	gotest site.newcomer ./launcher '^TestSlurmNewcomer$'
	gotest site.examples ./launcher '^TestSlurmExamples$'
fi

# ---------------------------------------------------------------- 6 nodes with a network, processes and /tmp of their own
if wants demo && rooted demo.hosts; then
	BESIDE=8
	nettest demo.up TestRootSlurmUp
	nettest demo.batch TestRootSlurmBatch
	nettest demo.firewall TestRootSlurmWall
	nettest demo.power-off-and-cut TestRootSlurmLost
	nettest demo.scancel TestRootSlurmScancel
	nettest demo.head-behind-firewall TestRootSlurmHeadGate
	nettest demo.head-power-off TestRootSlurmHeadLost
	nettest demo.head-not-reached TestRootSlurmHeadWall
	nettest demo.two-users TestRootSlurmUsers
	nettest demo.two-networks TestRootSlurmInterface
	nettest demo.no-home TestRootSlurmHomeless
	nettest demo.full-home TestRootSlurmFullHome
	nettest demo.confined TestRootSlurmConfined
	nettest demo.confined-ends TestRootSlurmConfinedEnds
fi
wait
