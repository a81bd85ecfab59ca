package agent

import (
	"context"
	"testing"

	"launcher/agent/core"
	"launcher/agent/supervisor/supervisortest"
	"launcher/wire"
)

// TestStartWithoutSupervisor: a start that fails because the supervisor is gone is no
// failure of the task, whichever step of it fails; the core hears nothing.
func TestStartWithoutSupervisor(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	defer cancel()
	sv := supervisortest.Start(t)
	a := testAgent(t)
	a.super = sv.Connect(t)
	a.events.init()
	a.env, a.groups = newEnvironment(a), newGroups(a)
	s := newStarter(a)
	s.empty = "/dev/null"
	plain := wire.Job{Job: 1, Spec: wire.JobSpec{Kind: wire.KindArray, Dir: "/"}}
	setup := plain
	setup.Job, setup.Setup = 2, []string{"exit 3"}
	order := func(j *wire.Job, argv ...string) core.Spawn {
		return core.Spawn{Proc: procOf(j.Job, 0), Job: j, Argv: argv, Dir: "/"}
	}
	failed := func() (n int) {
		for _, e := range a.events.takeAll(nil, 10) {
			if _, ok := e.ev.(core.ProcFailed); ok {
				n++
			}
		}
		return n
	}
	s.start(ctx, order(&setup, "true"))
	s.start(ctx, order(&plain, "/no/such/command"))
	if n := failed(); n != 2 {
		t.Fatalf("%d of 2 failures with a supervisor were told", n)
	}
	if err := sv.Stop(); err != nil {
		t.Fatal(err)
	}
	s.start(ctx, order(&plain, "true"))
	s.start(ctx, order(&setup, "true"))
	if n := failed(); n != 0 {
		t.Errorf("%d failures were told after the supervisor's death", n)
	}
}
