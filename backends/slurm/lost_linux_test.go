package slurm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"launcher/backends"
	"launcher/internal/errs"
	"launcher/internal/testkit"
	"launcher/internal/testkit/slurmtest"
	"launcher/wire"
)

// until is await with the time that Slurm takes to give a node up.
func (w *world) until(b *Backend, as []backends.Alloc, ok func(backends.Status) bool) (st backends.Status) {
	w.t.Helper()
	testkit.Eventually(w.t, 3*bound, func() string {
		all, err := b.Status(w.ctx(), [][]byte{as[0].Handle})
		if err != nil {
			return err.Error()
		}
		if st = all[0]; !ok(st) {
			return fmt.Sprintf("%+v", st)
		}
		return ""
	})
	return st
}

func (w *world) hosts(name string) []string {
	hosts, err := hostsOf(strings.TrimSpace(w.OK(w.t, "squeue", "-h", "-n", name, "-o", "%N")))
	if err != nil || len(hosts) != 2 {
		w.t.Fatalf("%s is on %q, %v", name, hosts, err)
	}
	return hosts
}

// A job whose node is lost goes on without it; one whose first node is lost, and with it its
// script, is ended. Agents on nodes that Slurm has given up may still run: they are named.
func TestLostNodes(t *testing.T) {
	slurmtest.Whole(t)
	w := newWorld(t, slurmtest.Options{Nodes: 4})
	b := New(w.home)
	o := backends.Options{"exclusive": true}
	second, first := w.request("second", 2, o), w.request("first", 2, o)
	loses := w.submit(b, second)
	ends := w.submit(b, first)
	w.await(b, loses, isRunning)
	w.await(b, ends, isRunning)
	testkit.Eventually(t, bound, func() string {
		if n := len(w.agents()); n != 4 {
			return fmt.Sprintf("%d agents run", n)
		}
		return ""
	})
	gone := []string{w.hosts("launcher-second")[1], w.hosts("launcher-first")[0]}
	for _, host := range gone {
		if err := w.Signal(host, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	st := w.until(b, loses, func(s backends.Status) bool { return len(s.DeadNodes) > 0 || s.State.Ended() })
	if st.State != backends.Running || !slices.Equal(st.DeadNodes, []wire.NodeID{second.Nodes[1]}) || !strings.Contains(st.Why, "lost its node "+gone[0]) {
		t.Errorf("without its second node: %+v", st)
	}
	st = w.until(b, ends, isOver)
	if st.State != backends.Lost || !strings.Contains(st.Why, "lost its first node") {
		t.Errorf("without its first node: %+v", st)
	}
	if st := w.await(b, loses, func(backends.Status) bool { return true }); st.State != backends.Running {
		t.Errorf("the other job: %+v", st)
	}
	for _, host := range gone { // what ran there is ended when it is back
		if err := w.Restart(host); err != nil {
			t.Fatal(err)
		}
	}
}

// A site's prolog that fails drains the node, which is not ours to mend, and ends the job: the
// request has failed and says what it may be.
func TestPrologFails(t *testing.T) {
	slurmtest.Whole(t)
	prolog := filepath.Join(t.TempDir(), "prolog")
	if err := os.WriteFile(prolog, []byte("#!/bin/sh\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, slurmtest.Options{Lines: []string{"Prolog=" + prolog}})
	b := New(w.home)
	as := w.submit(b, w.request("prolog", 1, nil))
	st := w.until(b, as, func(s backends.Status) bool {
		return s.State.Ended() || strings.Contains(s.Why, "its start failed on a node")
	})
	if st.State.Ended() && (st.State != backends.Failed || !strings.Contains(st.Why, "prolog")) || len(w.agents()) != 0 {
		t.Errorf("%+v, %d agents", st, len(w.agents()))
	}
}

// Without Slurm's commands, or with a configuration that is none, the error says what to do.
func TestNoSlurm(t *testing.T) {
	slurmtest.Whole(t)
	w := newWorld(t, slurmtest.Options{})
	conf := filepath.Join(t.TempDir(), "slurm.conf")
	if err := os.WriteFile(conf, []byte("Nonsense=1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	b := New(w.home)
	t.Setenv("SLURM_CONF", conf)
	if _, err := b.Submit(w.ctx(), w.request("conf", 1, nil)); err == nil || !strings.Contains(err.Error(), "sbatch") {
		t.Errorf("with a broken slurm.conf: %v", err)
	}
	t.Setenv("SLURM_CONF", w.Conf)
	t.Setenv("PATH", t.TempDir())
	_, err := b.Submit(w.ctx(), w.request("path", 1, nil))
	if e, ok := errors.AsType[*errs.Error](err); !ok || !errs.Is(err, errs.NotFound) || !strings.Contains(errs.Lines(e), "login node") {
		t.Errorf("without sbatch: %v", err)
	}
}
