package agent

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"launcher/agent/core"
	"launcher/agent/supervisor/supervisortest"
	"launcher/collectives"
	"launcher/internal/errs"
	"launcher/internal/logx"
	"launcher/wire"
	"launcher/wire/bundle"
)

func testAgent(t testing.TB) *agent {
	return &agent{log: logx.Discard(), cfg: wire.NodeConfig{Node: "p-0", Dir: t.TempDir(), CacheDir: t.TempDir()}}
}

func TestEnvironment(t *testing.T) {
	a := testAgent(t)
	a.o.SDK = func(cache string) (string, error) { return cache + "/sdk", nil }
	e := newEnvironment(a)
	e.outer = []string{"HOME=/h", "PATH=/bin", "SLURM_JOB_ID=7", "RANK=3", "LAUNCHER_JOB_ID=9", "OMPI_X=1", "PYTHONPATH=/mine", "A=outer", "B=outer", "OMP_NUM_THREADS=64"}
	j := &wire.Job{Job: 1, PoolEnv: []string{"B=pool", "C=pool"}, Python: "/venv/bin/python", Spec: wire.JobSpec{Env: []string{"C=job", "LAUNCHER_TASK_ID=forged", "CUDA_VISIBLE_DEVICES=5", "D=x=y"}}}
	s := &core.Spawn{Job: j, Env: []string{"LAUNCHER_TASK_ID=1.0", "RANK=0"}, Soft: []string{"CUDA_VISIBLE_DEVICES=", "OMP_NUM_THREADS=1"}}
	got, err := e.of(context.Background(), s, []string{"LAUNCHER_PARAMS=/p"})
	must(t, err)
	slices.Sort(got)
	want := []string{"A=outer", "B=pool", "C=job", "CUDA_VISIBLE_DEVICES=5", "D=x=y", "HOME=/h", "LAUNCHER_PARAMS=/p", "LAUNCHER_TASK_ID=1.0", "OMP_NUM_THREADS=1",
		"PATH=/venv/bin:/bin", "PYTHONPATH=" + a.cfg.CacheDir + "/sdk:/mine", "RANK=0"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	// Kept on request: what the outer launcher set, never what was ours.
	keep := *j
	keep.Job, keep.Spec.Keep = 2, []string{"slurm"}
	s.Job = &keep
	got, err = e.of(context.Background(), s, nil)
	must(t, err)
	if !slices.Contains(got, "SLURM_JOB_ID=7") || slices.Contains(got, "OMPI_X=1") || slices.Contains(got, "LAUNCHER_JOB_ID=9") {
		t.Errorf("with slurm kept: %q", got)
	}
}

func TestSetup(t *testing.T) {
	e := newEnvironment(testAgent(t))
	e.outer = []string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent"}
	count := filepath.Join(t.TempDir(), "count")
	j := &wire.Job{Job: 1, Setup: []string{"echo x >> " + count, "export MODULE='a b'", "echo noise"}, PoolEnv: []string{"P=1"}}
	for i := range 3 {
		x := *j
		x.Job = wire.JobID(i + 1)
		got, err := e.of(context.Background(), &core.Spawn{Job: &x}, nil)
		must(t, err)
		if !slices.Contains(got, "MODULE=a b") || !slices.Contains(got, "P=1") {
			t.Fatalf("got %q", got)
		}
	}
	if b, _ := os.ReadFile(count); string(b) != "x\n" {
		t.Errorf("setup ran %d times, want once per node", strings.Count(string(b), "x"))
	}
}

func TestResumeDir(t *testing.T) {
	step := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(step, "rank-10"), 0o700))
	must(t, os.MkdirAll(filepath.Join(step, "rank-2"), 0o700))
	for rank, want := range map[uint32]string{2: "rank-2", 10: "rank-10", 0: "rank-2", 5: "rank-2"} {
		if got := bundle.Part(step, rank); got != filepath.Join(step, want) {
			t.Errorf("rank %d resumes from %s, want %s", rank, got, want)
		}
	}
	if got := bundle.Part("", 0); got != "" {
		t.Errorf("got %q", got)
	}
	if got := bundle.Part("/own/place", 0); got != "/own/place" {
		t.Errorf("got %q", got)
	}
}

// TestCheckpointSavedAgain: the same step again replaces the first, and a failure leaves
// what was there.
func TestCheckpointSavedAgain(t *testing.T) {
	root, from := t.TempDir(), t.TempDir()
	j := &wire.Job{Job: 1, Spec: wire.JobSpec{Kind: wire.KindSweep}, Record: root}
	p := wire.Proc{Try: wire.Try{Task: wire.Task{Job: 1, Index: 4}, Attempt: 2}}
	at := filepath.Join(root, "checkpoints", "4", "step-3.a2")
	for _, text := range []string{"one", "two"} {
		must(t, os.WriteFile(filepath.Join(from, "w"), []byte(text), 0o600))
		got, err := (&agent{}).saveCheckpoint(context.Background(), j, p, 3, from)
		if err != nil || got != at {
			t.Fatalf("%s, %v", got, err)
		}
		if b, _ := os.ReadFile(filepath.Join(at, "rank-0", "w")); string(b) != text {
			t.Errorf("saved %q, want %q", b, text)
		}
	}
	must(t, os.WriteFile(filepath.Join(from, "w"), []byte("three"), 0o600))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := (&agent{}).saveCheckpoint(ctx, j, p, 3, from); err == nil {
		t.Error("a save that was given up succeeded")
	}
	if b, _ := os.ReadFile(filepath.Join(at, "rank-0", "w")); string(b) != "two" {
		t.Errorf("a save that was given up left %q", b)
	}
	if all, _ := os.ReadDir(at); len(all) != 1 {
		t.Errorf("%d entries in %s, want rank-0 alone", len(all), at)
	}
}

// TestCheckpointDiskFull: the program is told, with a hint, and nothing half is left.
func TestCheckpointDiskFull(t *testing.T) {
	small := mountSmall(t)
	from := t.TempDir()
	must(t, os.WriteFile(filepath.Join(from, "w"), make([]byte, 2<<20), 0o600))
	j := &wire.Job{Job: 1, Spec: wire.JobSpec{Kind: wire.KindTrain, Train: &wire.TrainSpec{Checkpoints: small}}}
	_, err := (&agent{}).saveCheckpoint(context.Background(), j, procOf(1, 0), 1, from)
	if !errs.Is(err, errs.Exhausted) || len(errs.HintsOf(err)) == 0 || !strings.Contains(err.Error(), "step 1") {
		t.Errorf("got %v", err)
	}
	if all, _ := filepath.Glob(filepath.Join(small, "*", "*")); len(all) != 0 {
		t.Errorf("left: %v", all)
	}
}

// TestJournal: what is appended is there for the next agent, compacted or not.
func TestJournal(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	defer cancel()
	sv := supervisortest.Start(t)
	c := sv.Connect(t)
	j, err := openJournal(ctx, c, nil, logx.Discard())
	must(t, err)
	add := func(r core.Record) {
		j.state.Apply(r)
		must(t, j.append([]core.Record{r}))
	}
	add(core.RecJob{Job: wire.Job{Job: 1}})
	for i := range uint32(20000) {
		e := wire.Ended{Proc: procOf(1, i), Err: &errs.Wire{Msg: strings.Repeat("x", 300)}}
		add(core.RecEnded{Ended: e})
		add(core.RecAck{Seq: uint64(i)})
		must(t, j.compact(ctx))
	}
	if j.log.End() > compactAt {
		t.Errorf("the journal has %d bytes after compaction", j.log.End())
	}
	want := j.state.Snapshot()
	c.Close()
	c = sv.Connect(t)
	k, err := openJournal(ctx, c, c.FDs()[stateName], logx.Discard())
	must(t, err)
	got := k.state.Snapshot()
	if len(got) != len(want) {
		t.Fatalf("%d records, want %d", len(got), len(want))
	}
	for i := range want {
		if string(core.Encode(nil, got[i])) != string(core.Encode(nil, want[i])) {
			t.Errorf("record %d: %+v, want %+v", i, got[i], want[i])
		}
	}
}

func TestHeadAddrs(t *testing.T) {
	cfg := wire.NodeConfig{Cluster: "c", Addrs: []string{"a:1", "b:2"}, Dir: filepath.Join(t.TempDir(), "nodes", "p-0")}
	file := filepath.Join(filepath.Dir(filepath.Dir(cfg.Dir)), "cluster.json")
	check := func(want ...string) {
		t.Helper()
		if got := headAddrs(cfg); !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	check("a:1", "b:2")
	must(t, os.WriteFile(file, []byte(`{"name":"c","addrs":["n:9","b:2"]}`), 0o600))
	check("n:9", "b:2", "a:1")
	must(t, os.WriteFile(file, []byte(`{"name":"other","addrs":["n:9"]}`), 0o600))
	check("a:1", "b:2")
	must(t, os.WriteFile(file, []byte(`{"na`), 0o600))
	check("a:1", "b:2")
}

func TestPorts(t *testing.T) {
	for s, want := range map[string][2]int{"": {0, 0}, "20000": {20000, 20000}, "20000-20100": {20000, 20100}} {
		if from, to, err := ports(s); err != nil || from != want[0] || to != want[1] {
			t.Errorf("%q: %d-%d, %v", s, from, to, err)
		}
	}
	for _, s := range []string{"0", "9-8", "x", "1-70000", "-"} {
		if _, _, err := ports(s); !errs.Is(err, errs.Invalid) {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestShareGPUs(t *testing.T) {
	all := []wire.GPU{{UUID: "0"}, {UUID: "1", Busy: true}, {UUID: "2"}, {UUID: "3"}}
	got := shareGPUs(all, wire.NodeConfig{Slot: 1, Slots: 2, Share: "ignore"})
	if len(got) != 2 || got[0].UUID != "1" || got[0].Busy || got[1].UUID != "3" {
		t.Errorf("got %+v", got)
	}
	if got := shareGPUs(all, wire.NodeConfig{}); len(got) != 4 || !got[1].Busy {
		t.Errorf("got %+v", got)
	}
}

func TestStoppedByState(t *testing.T) {
	if anyStopped([]int{os.Getpid(), 1 << 30}) {
		t.Error("this process is not stopped")
	}
}

func FuzzParseProc(f *testing.F) {
	for _, s := range []string{"7.0#1/2", "1.4294967295#4294967295/4294967295", "7#1/2", "7.0#1", "", "#/", "07.0#1/2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if p, err := parseProc(s); err == nil && p.String() != s {
			t.Errorf("%q is read as %s", s, p)
		}
	})
}

func FuzzParseReport(f *testing.F) {
	f.Add([]byte(`{"metrics":{"loss":0.3,"x":"NaN"},"step":5,"checkpoint":"DIR"}`))
	f.Add([]byte(`{}{}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if rb, err := parseReport(b); err == nil && rb.Step != nil && *rb.Step < 0 {
			t.Error("a negative step")
		}
	})
}

func FuzzDecodeHead(f *testing.F) {
	for typ, msg := range map[uint16]any{wire.MsgWelcome: wire.Welcome{}, wire.MsgAssign: wire.Assign{Items: []wire.Item{{}}}, wire.MsgStart: wire.Start{}, wire.MsgJob: wire.Job{}} {
		f.Add(typ, wire.Marshal(msg))
	}
	f.Fuzz(func(t *testing.T, typ uint16, b []byte) {
		msg, err := decodeHead(typ, b)
		if err != nil || msg == nil {
			return
		}
		// Whatever a head sends, the core must not fall over it.
		c := core.New(core.Config{Hello: wire.Hello{Node: "n", Total: wire.Resources{CPU: wire.Unit}}}, core.NewState())
		now := time.Unix(1e9, 0).UnixNano()
		for _, ev := range []core.Event{core.HeadUp{}, core.FromHead{Msg: wire.Welcome{HeadEpoch: 1}}, core.FromHead{Msg: wire.Job{Job: 1}}} {
			c.Step(now, ev)
		}
		if a, ok := msg.(wire.Assign); ok {
			for _, r := range a.Ranges {
				if r.To > r.From && r.To-r.From > 1000 {
					return // only long, not wrong
				}
			}
		}
		c.Step(now, core.FromHead{Msg: msg})
		c.Step(now, core.Tick{})
	})
}

// TestWhoseFailure: what a broken group is told to the head as.
func TestWhoseFailure(t *testing.T) {
	a := testAgent(t)
	a.events.init()
	g := newGroups(a)
	x := &group{id: procOf(1, 0).Try, first: 2, count: 2}
	alone := &group{id: procOf(1, 0).Try, first: 2, count: 1}
	cases := []struct {
		x     *group
		err   error
		rank  int32 // -2: nothing is told
		cause string
	}{
		{x, &collectives.PeerLost{Rank: 5, Cause: "killed"}, 5, "killed"},
		{x, &collectives.PeerLost{Rank: -1, Cause: "the link broke"}, -1, "the link broke"},
		{x, &collectives.PeerLost{Rank: 2, Cause: leftCause + "; rank 3 still waited"}, 3, "rank 2 left the group; rank 3 still waited"},
		{x, &collectives.PeerLost{Rank: 0, Cause: leftCause}, 2, "rank 0 left the group"},
		{alone, &collectives.PeerLost{Rank: 2, Cause: leftCause}, -2, ""},
		{x, &collectives.Timeout{Rank: 7, Cause: "rank 7 never called"}, 7, "rank 7 never called"},
		{x, &collectives.Timeout{Rank: -1, Cause: "nobody called"}, 2, "nobody called"},
		{x, &collectives.Mismatch{Rank: 4, Cause: "sum and max"}, 4, "the ranks do not agree: sum and max"},
	}
	for _, c := range cases {
		g.failed(c.x, c.err)
		got := a.events.takeAll(nil, 10)
		if c.rank == -2 {
			if len(got) != 0 {
				t.Errorf("%v: told %+v", c.err, got)
			}
			continue
		}
		if len(got) != 1 || got[0].ev != (core.GroupFailed{Gang: x.id, Rank: c.rank, Cause: c.cause}) {
			t.Errorf("%v: told %+v", c.err, got)
		}
	}
}
