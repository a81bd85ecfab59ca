package slurm

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"launcher/backends"
	"launcher/backends/backendtest"
	"launcher/internal/testkit"
	"launcher/internal/testkit/slurmtest"
	"launcher/wire"
)

// The test binary is what a job starts on its nodes.
func TestMain(m *testing.M) {
	if len(os.Args) > 3 && os.Args[1] == "slurm-node" {
		if err := Node(context.Background(), os.Args[3], os.Stderr, agent); err != nil {
			fmt.Fprintln(os.Stderr, "error:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// agent does what the label "do" says.
func agent(_ context.Context, config io.Reader) error {
	var c wire.NodeConfig
	b, err := io.ReadAll(config)
	if err != nil || wire.Unmarshal(b, &c) != nil || string(c.JoinKey) == "" {
		return fmt.Errorf("no configuration: %v", err)
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return err
	}
	sigs := make(chan os.Signal, 1)
	signal.Notify(sigs, syscall.SIGTERM)
	switch c.Labels["do"] {
	case "fail":
		_ = os.WriteFile(filepath.Join(c.Dir, "agent.log"), []byte("something\nthe reason why\n"), 0o600)
		return fmt.Errorf("as told")
	case "tell":
		_ = os.WriteFile(filepath.Join(os.Getenv("LAUNCHER_HOME"), string(c.Node)), fmt.Appendf(nil, "%v %v %s", c.Resources, c.Memory, os.Getenv("SLURMD_NODENAME")), 0o600)
	}
	<-sigs
	return nil
}

// world is a Slurm and a home.
type world struct {
	*slurmtest.Cluster
	t    *testing.T
	home string
	next int
}

func newWorld(t *testing.T, o slurmtest.Options) *world {
	w := &world{t: t, Cluster: slurmtest.New(t, o), home: t.TempDir()}
	for _, kv := range append(w.Env(), "LAUNCHER_HOME="+w.home) {
		k, v, _ := strings.Cut(kv, "=")
		t.Setenv(k, v)
	}
	t.Setenv("SLURM_JOB_ID", "")
	return w
}

func (w *world) request(token string, n int, o backends.Options) backends.Request {
	exe, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	r := backends.Request{Token: token, Cluster: "lab", Pool: "burst", Options: o, Home: w.home, Binary: exe,
		Join: backends.Join{Addrs: []string{"127.0.0.1:1"}, CA: []byte("ca"), Key: []byte("KEY-THAT-NOBODY-SEES")}}
	for range n {
		r.Nodes, r.Epochs = append(r.Nodes, wire.NodeID("burst-"+strconv.Itoa(w.next))), append(r.Epochs, 1)
		w.next++
	}
	return r
}

// agents are the processes on nodes, by what nodes they are of.
func (w *world) agents() (pids []int) {
	exe, _ := os.Executable()
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		argv, err := os.ReadFile(d + "/cmdline")
		if err == nil && bytes.HasPrefix(argv, []byte(exe+"\x00slurm-node\x00")) && bytes.Contains(argv, []byte(w.home)) {
			pid, _ := strconv.Atoi(filepath.Base(d))
			pids = append(pids, pid)
		}
	}
	return pids
}

const bound = 60 * time.Second

func (w *world) ctx() context.Context {
	ctx, cancel := context.WithTimeout(w.t.Context(), bound)
	w.t.Cleanup(cancel)
	return ctx
}

// await waits until the only job of a request is as ok wants it.
func (w *world) await(b *Backend, as []backends.Alloc, ok func(backends.Status) bool) (st backends.Status) {
	w.t.Helper()
	testkit.Eventually(w.t, bound, func() string {
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

func (w *world) submit(b *Backend, r backends.Request) []backends.Alloc {
	w.t.Helper()
	as, err := b.Submit(w.ctx(), r)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), bound)
		defer cancel()
		var hs [][]byte
		for _, a := range as {
			hs = append(hs, a.Handle)
		}
		if err := b.Cancel(ctx, hs); err != nil {
			w.t.Errorf("cancel at the end: %v", err)
		}
	})
	return as
}

func isRunning(s backends.Status) bool { return s.State == backends.Running }
func isOver(s backends.Status) bool    { return s.State.Ended() }

func laws(w *world, o backends.Options, most int) backendtest.Harness {
	return backendtest.Harness{
		Open:    func(t *testing.T) backends.Backend { return New(w.home) },
		Request: func(t *testing.T, token string, n int) backends.Request { return w.request(token, n, o) },
		Nodes:   func(t *testing.T) int { return len(w.agents()) },
		Kill: func(t *testing.T, a backends.Alloc) {
			for _, p := range w.agents() {
				_ = syscall.Kill(p, syscall.SIGKILL)
			}
		},
		Good: []backends.Options{{}, {"partition": "gpu", "time": "4h", "nodes_per_job": int64(2), "gres": "gpu:a100:8"}, {"time": []any{"1h", "8h"}, "memory": "64GiB", "exclusive": true}},
		Bad: []backends.Options{{"partitoin": "x"}, {"partition": "a b", "time": "soon"}, {"time": []any{"1h"}, "args": []any{"x"}}, {"cpus": int64(-1), "memory": "much"},
			{"account": "x\n#SBATCH --wrap=y"}, {"exclusive": "yes"}, {"overlap": true}},
		Bound: bound,
	}
}

// TestLaws holds the contract's laws to a real Slurm.
func TestLaws(t *testing.T) {
	w := newWorld(t, slurmtest.Options{Nodes: 4, CPUs: 8})
	h := laws(w, backends.Options{"cpus": int64(1)}, 0)
	h.BadSubmit = func(t *testing.T, token string) backends.Request {
		return w.request(token, 1, backends.Options{"partition": "nosuch"})
	}
	backendtest.Run(t, h)
}
