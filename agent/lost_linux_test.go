package agent

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"testing"

	"launcher/agent/core"
	"launcher/agent/supervisor/supervisortest"
	"launcher/agent/tasks"
	"launcher/internal/clock"
	"launcher/internal/errs"
	"launcher/internal/logx"
	"launcher/wire"
	"launcher/wire/sdk"
	"launcher/wire/secure"
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
	a.outputs = newOutputs(a)
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

// TestWorkerWithoutSupervisor: nor is it one of the environment of tasks. The loss of the
// template, which says that an interpreter is of no use, is one.
func TestWorkerWithoutSupervisor(t *testing.T) {
	sv := supervisortest.Start(t)
	a := testAgent(t)
	a.super = sv.Connect(t)
	a.clock = clock.NewFake(1)
	s := newSDKServer(a)
	s.core = tasks.New(tasks.Config{}, nil, nil)
	var err error
	s.log, err = newMemoryLog(t.Context(), a.super, taskLogName, taskCompactAt, nil)
	must(t, err)
	s.clients[4], s.clients[5] = &sdkClient{}, &sdkClient{}
	s.workerFailed(4, errs.New(errs.Lost, "the template has ended: launcher needs Python 3.9 or later"))
	if s.clients[4] != nil {
		t.Error("a worker that cannot be started is waited for")
	}
	if err := sv.Stop(); err != nil {
		t.Fatal(err)
	}
	s.workerFailed(5, errs.New(errs.Unknown, "storing descriptor control/5: the supervisor is gone"))
	if s.clients[5] == nil {
		t.Fatal("its worker is taken for one that cannot be started")
	}
}

// TestNothingIsDoneEarly: what the reactor wants while the agent is put together, because the
// store speaks early, is done once all parts are there.
func TestNothingIsDoneEarly(t *testing.T) {
	a := testAgent(t)
	a.clock = clock.NewFake(1)
	s := newSDKServer(a)
	s.core = tasks.New(tasks.Config{Node: "p-0", Number: 1, Cores: 1}, nil, nil)
	s.turn(func(now int64) {
		must(t, s.core.Connect(now, tasks.Client{ID: 7, Kind: sdk.KindDriver, Language: "python", Job: "1"}))
		theirs := make([]byte, 16) // an object of node 2: its agent is to be told of it
		theirs[0], theirs[4], theirs[10] = 2, 1, 1
		must(t, s.core.Frame(now, 7, sdk.MsgHold, theirs))
	})
	if len(s.core.Take(0).Effects) == 0 {
		t.Error("it was done, or forgotten")
	}
}

// TestJoinsWithOneKey: answers that were lost, and an agent that was killed before it
// could keep one, are no further uses of the join key.
func TestJoinsWithOneKey(t *testing.T) {
	h := startHead(t, 0)
	var asked []string
	enough := make(chan struct{})
	h.admit = func(r secure.JoinRequest) error {
		b, _ := pem.Decode(r.CSR)
		csr, err := x509.ParseCertificateRequest(b.Bytes)
		if err != nil {
			return err
		}
		asked = append(asked, string(csr.RawSubjectPublicKeyInfo))
		switch {
		case asked[0] != asked[len(asked)-1]:
			return errs.New(errs.Fenced, "another key")
		case len(asked) < 3:
			return errs.New(errs.Unavailable, "the answer is lost")
		case len(asked) == 3:
			close(enough)
			return errs.New(errs.Unavailable, "the answer is lost")
		}
		return nil
	}
	cfg := h.config(t, "p-0")
	sv := supervisortest.Start(t)
	c := sv.Connect(t)
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	defer cancel()
	first := make(chan error, 1)
	go func() {
		first <- Main(ctx, Options{Log: logx.Discard(), Supervisor: c, Config: &cfg, Binary: "/bin/launcher"})
	}()
	select {
	case <-enough:
	case err := <-first:
		t.Fatalf("the first agent ended with %v", err)
	}
	cancel()
	if err := <-first; err == nil {
		t.Fatal("the first agent joined")
	}
	c.Close()
	inProcess(t, h, cfg, sv)
	h.up("p-0", 1)
	if n := len(asked); n != 4 {
		t.Errorf("%d requests to join, want 4", n)
	}
}
