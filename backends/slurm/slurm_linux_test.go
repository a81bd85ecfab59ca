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
		if err := Node(context.Background(), os.Args[3], "", os.Stderr, agent); err != nil {
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
	t.Setenv("TMPDIR", t.TempDir()) // what nodes that are killed leave there goes with it
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

// awaitAgent waits until a node's process runs.
func (w *world) awaitAgent() {
	w.t.Helper()
	testkit.Eventually(w.t, bound, func() string {
		if len(w.agents()) == 0 {
			return "no agent runs"
		}
		return ""
	})
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
		Open: func(t *testing.T) backends.Backend {
			b := New(w.home)
			b.calmLook = 2 * missedLook // no head asks here
			return b
		},
		Request: func(t *testing.T, token string, n int) backends.Request { return w.request(token, n, o) },
		Nodes:   func(t *testing.T) int { return len(w.agents()) },
		Kill: func(t *testing.T, a backends.Alloc) {
			for _, p := range w.agents() {
				_ = syscall.Kill(p, syscall.SIGKILL)
			}
		},
		Good: []backends.Options{{}, {"partition": "gpu", "time": "4h", "nodes_per_job": int64(2), "gres": "gpu:a100:8"}, {"time": []any{"1h", "8h"}, "memory": "64GiB", "exclusive": true}},
		Bad: []backends.Options{{"partitoin": "x"}, {"partition": "a b", "time": "soon"}, {"time": []any{"1h"}, "args": []any{"x"}}, {"cpus": int64(-1), "memory": "much"},
			{"account": "x\n#SBATCH --wrap=y"}, {"exclusive": "yes"}, {"overlap": "no"}},
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

// A call whose answer is lost may have worked: it is looked up, and never made twice.
func TestLostAnswer(t *testing.T) {
	slurmtest.Whole(t)
	w := newWorld(t, slurmtest.Options{})
	b := New(w.home)
	r := w.request("lost", 1, nil)
	if err := w.Signal("slurmctld", syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(w.ctx(), 2*time.Second)
	as, err := b.Submit(ctx, r)
	cancel()
	if err == nil {
		t.Fatalf("submitted while the controller was stopped: %v", as)
	}
	ctx, cancel = context.WithTimeout(w.ctx(), 2*time.Second)
	if found, err := b.Find(ctx, "lab", []string{"lost"}); err == nil {
		t.Errorf("found %v while the controller was stopped, wanted an error: nobody knows", found)
	}
	cancel()
	if err := w.Signal("slurmctld", syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, bound, func() string { // first it is not known yet
		if as, err = b.Submit(w.ctx(), r); err != nil {
			return err.Error()
		}
		return ""
	})
	defer b.Cancel(w.ctx(), [][]byte{as[0].Handle})
	w.await(b, as, isRunning)
	testkit.Eventually(t, bound, func() string {
		if n := len(w.agents()); n != 1 {
			return fmt.Sprintf("%d nodes run", n)
		}
		return ""
	})
	if n := strings.Count(w.OK(t, "squeue", "-h", "-t", "all"), "\n"); n != 1 {
		t.Errorf("%d jobs were made of one submission", n)
	}
}

// A second job of one name, from a call that was given up and came through all the same,
// is cancelled.
func TestTwin(t *testing.T) {
	slurmtest.Whole(t)
	w := newWorld(t, slurmtest.Options{})
	b := New(w.home)
	as := w.submit(b, w.request("twin", 1, nil))
	w.await(b, as, isRunning)
	w.OK(t, "sbatch", "-J", "launcher-twin", "-o", "/dev/null", "--wrap", "sleep 600")
	testkit.Eventually(t, bound, func() string {
		b.soon()
		if st, err := b.Status(w.ctx(), [][]byte{as[0].Handle}); err != nil || st[0].State != backends.Running {
			return fmt.Sprintf("%+v %v", st, err)
		}
		if out := w.OK(t, "squeue", "-h", "-n", "launcher-twin", "-o", "%A"); strings.Count(out, "\n") != 1 {
			return "jobs " + out
		}
		return ""
	})
	if len(w.agents()) != 1 {
		t.Error("the first was cancelled, not the second")
	}
}

// While the controller is away nothing is taken for lost, and when it is back all is as it
// was.
func TestControllerAway(t *testing.T) {
	slurmtest.Whole(t)
	w := newWorld(t, slurmtest.Options{})
	b := New(w.home)
	as := w.submit(b, w.request("away", 1, nil))
	w.await(b, as, isRunning)
	w.awaitAgent() // srun needs the controller for its step
	w.End("slurmctld")
	b.soon()
	time.Sleep(2 * firstLook) // sleep: a look that is too young is not repeated
	st := w.await(b, as, func(s backends.Status) bool { return strings.Contains(s.Why, "cannot be asked") })
	if st.State != backends.Running || len(st.DeadNodes) > 0 {
		t.Errorf("with the controller away: %+v", st)
	}
	if err := w.Restart("slurmctld"); err != nil {
		t.Fatal(err)
	}
	st = w.await(b, as, func(s backends.Status) bool { return !strings.Contains(s.Why, "cannot be asked") })
	if st.State != backends.Running || len(w.agents()) != 1 {
		t.Errorf("with the controller back: %+v, %d nodes", st, len(w.agents()))
	}
}

// Why a job waits, and the many ways to end, are told apart.
func TestEnds(t *testing.T) {
	slurmtest.Whole(t)
	w := newWorld(t, slurmtest.Options{Nodes: 2,
		Lines: []string{"PreemptType=preempt/partition_prio", "PreemptMode=CANCEL"},
		Parts: []string{"PartitionName=low Nodes=ALL PriorityTier=1 PreemptMode=CANCEL", "PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF"}})
	b := New(w.home)
	end := func(name string, o backends.Options, labels map[string]string, do func(id string), state backends.AllocState, words ...string) {
		t.Helper()
		r := w.request(name, 1, o)
		r.Labels = labels
		as := w.submit(b, r)
		id := strings.TrimSpace(w.OK(t, "squeue", "-h", "-n", "launcher-"+name, "-o", "%A"))
		if do != nil {
			w.await(b, as, isRunning)
			w.awaitAgent()
			do(id)
		}
		st := w.await(b, as, isOver)
		if st.State != state {
			t.Errorf("%s: %+v, wanted state %d", name, st, state)
		}
		for _, word := range words {
			if !strings.Contains(st.Why, word) {
				t.Errorf("%s: %q does not say %q", name, st.Why, word)
			}
		}
		if _, err := os.Stat(filepath.Join(w.home, "clusters/lab/slurm", "launcher-"+name+nodesExt)); err == nil {
			t.Errorf("%s: its join key is still there", name)
		}
	}
	end("fails", nil, map[string]string{"do": "fail"}, nil, backends.Failed, "as told")
	end("cancelled", nil, nil, func(id string) { w.OK(t, "scancel", id) }, backends.Failed, "not by launcher")
	end("timeout", backends.Options{"time": "10m"}, nil, func(id string) { w.OK(t, "scontrol", "update", "JobId="+id, "EndTime=now") }, backends.Done, "time of Slurm job")
	end("preempted", backends.Options{"partition": "low", "exclusive": true}, nil, func(string) {
		w.OK(t, "sbatch", "-p", "high", "-N2", "--exclusive", "-J", "before-it", "-o", "/dev/null", "--wrap", "sleep 600")
	}, backends.Done, "preempted")
	// All nodes are taken by a partition that goes first: it waits, and says for what.
	as := w.submit(b, w.request("waits", 1, backends.Options{"partition": "low", "time": "10m"}))
	w.await(b, as, func(s backends.Status) bool {
		return s.State == backends.Pending && (strings.Contains(s.Why, "no nodes are free") || strings.Contains(s.Why, "other jobs are before it"))
	})
	as = w.submit(b, w.request("never", 3, nil))
	w.await(b, as, func(s backends.Status) bool {
		return s.State == backends.Pending && strings.Contains(s.Why, "never gives a job so many nodes")
	})
	for name, x := range map[string]struct{ arg, words string }{
		"held":  {"--hold", "`scontrol release` lets it go on (JobHeldUser)"},
		"begin": {"--begin=now+1hour", "its begin time has not come (BeginTime)"},
	} {
		as = w.submit(b, w.request(name, 1, backends.Options{"args": []any{x.arg}}))
		w.await(b, as, func(s backends.Status) bool {
			return s.State == backends.Pending && strings.Contains(s.Why, x.words)
		})
	}
}

// What Slurm grants a node is what its agent is told to have, where the site confines
// nobody to it.
func TestGrant(t *testing.T) {
	slurmtest.Whole(t)
	w := newWorld(t, slurmtest.Options{CPUs: 4, Lines: []string{"SelectTypeParameters=CR_Core_Memory"}})
	b := New(w.home)
	r := w.request("grant", 2, backends.Options{"cpus": int64(1), "memory": "100MiB"})
	r.Labels = map[string]string{"do": "tell"}
	as := w.submit(b, r)
	w.await(b, as, isRunning)
	hosts := map[string]bool{}
	for _, n := range r.Nodes {
		testkit.Eventually(t, bound, func() string {
			said, _ := os.ReadFile(filepath.Join(w.home, string(n)))
			f := strings.Fields(string(said))
			if len(f) == 0 {
				return "nothing is said"
			}
			hosts[f[len(f)-1]] = true
			if usable() > 1 && !strings.Contains(string(said), "cpu=1") || f[len(f)-2] != fmt.Sprint(100<<20) {
				return "its agent was told " + string(said)
			}
			return ""
		})
	}
	if len(hosts) != 2 {
		t.Errorf("two nodes on %v", hosts)
	}
}

// One look at the queue serves all, and what is asked of the controller is what is counted.
func TestFewCalls(t *testing.T) {
	slurmtest.Whole(t)
	w := newWorld(t, slurmtest.Options{CPUs: 64})
	b := New(w.home)
	var hs [][]byte
	for i := range 10 {
		hs = append(hs, w.submit(b, w.request("few-"+strconv.Itoa(i), 1, nil))[0].Handle)
	}
	before := b.Commands()
	began := time.Now()
	for time.Since(began) < 3*time.Second {
		if _, err := b.Status(w.ctx(), hs); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond) // sleep: a head asks again and again
	}
	if n := b.Commands()["squeue"] - before["squeue"]; n > 9 {
		t.Errorf("%d looks at the queue in 3 s", n)
	}
	if n := b.Commands()["sbatch"]; n != 10 {
		t.Errorf("sbatch was called %d times for 10 submissions", n)
	}
	asked := w.Calls(t)
	if n, own := asked["REQUEST_SUBMIT_BATCH_JOB"], b.Commands()["sbatch"]; n != own {
		t.Errorf("sdiag counts %d submissions, we %d: %v", n, own, asked)
	}
	if n, own := asked["REQUEST_JOB_USER_INFO"]+asked["REQUEST_JOB_INFO"], b.Commands()["squeue"]; n < own-1 || n > own+1 {
		t.Errorf("sdiag counts %d questions about jobs, we %d: %v", n, own, asked)
	}
}
