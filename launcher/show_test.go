package main

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"launcher/internal/errs"
	"launcher/wire"
)

func TestJobExit(t *testing.T) {
	for _, c := range []struct {
		j    wire.JobInfo
		code int
		side string
	}{
		{wire.JobInfo{State: wire.StateDone}, 0, sideLauncher},
		{wire.JobInfo{State: wire.StateFailed, ExitCode: 7}, 7, sideCommand},
		{wire.JobInfo{State: wire.StateFailed, ExitCode: 137}, 137, sideCommand},
		{wire.JobInfo{State: wire.StateFailed, ExitCode: 127, Tasks: 1, Cause: "the command on a-0 exited with 127: node a-0: not found"}, 127, sideLauncher},
		{wire.JobInfo{State: wire.StateFailed, ExitCode: 127, Tasks: 1, Cause: "the command on a-0 exited with 127"}, 127, sideCommand},
		{wire.JobInfo{State: wire.StateFailed, ExitCode: 124, Tasks: 1, Cause: "the command on a-0 ran over its time limit"}, 124, sideLauncher},
		{wire.JobInfo{State: wire.StateFailed, ExitCode: 125, Tasks: 1, Cause: "the command on a-0 exited with 125"}, 125, sideCommand},
		{wire.JobInfo{State: wire.StateFailed, ExitCode: 125, Tasks: 1, Cause: "no node has 64 cores"}, 125, sideLauncher},
		{wire.JobInfo{State: wire.StateFailed, ExitCode: -1, Cause: "node gone"}, 125, sideLauncher},
		{wire.JobInfo{State: wire.StateCancelled, ExitCode: 143}, 130, sideLauncher},
		{wire.JobInfo{State: wire.StateLost}, 125, sideLauncher},
	} {
		code, side := exitCode(jobExit(c.j))
		if code != c.code || (code != 0 && side != c.side) {
			t.Errorf("%s %d: got %d %s, want %d %s", c.j.State, c.j.ExitCode, code, side, c.code, c.side)
		}
	}
}

func TestLines(t *testing.T) {
	var out, errb strings.Builder
	w := newLineWriter(func(k procStream) string { return string(rune('0'+k.rank)) + ": " }, func(s uint8, b []byte) error {
		if s == 2 {
			errb.Write(b)
		} else {
			out.Write(b)
		}
		return nil
	})
	put := func(rank uint32, stream uint8, s string) {
		if err := w.write(procStream{rank: rank, stream: stream}, []byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	put(0, 1, "hel")
	put(1, 1, "one\ntw")
	put(0, 2, "oops\n")
	put(0, 1, "lo\n\nx")
	put(1, 1, "o\n")
	if err := w.flush(); err != nil {
		t.Fatal(err)
	}
	if want := "1: one\n0: hello\n0: \n1: two\n0: x\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
	if errb.String() != "0: oops\n" {
		t.Errorf("stderr %q", errb.String())
	}
}

func TestProgressLeavesResultsWhole(t *testing.T) {
	var term strings.Builder
	s := newScreen(&term, &term, true)
	s.progress("50%")
	_ = s.write(&term, []byte("partial"))
	_ = s.write(&term, []byte(" line\n"))
	s.line("note")
	s.done()
	want := "\r50%\x1b[K" + "\r\x1b[K" + "partial" + " line\n" + "\r50%\x1b[K" + "\r\x1b[K" + "note\n" + "\r50%\x1b[K" + "\r\x1b[K"
	if term.String() != want {
		t.Errorf("got  %q\nwant %q", term.String(), want)
	}
	term.Reset()
	s = newScreen(&term, &term, false)
	s.progress("50%")
	s.done()
	if term.String() != "" {
		t.Errorf("a progress line where nobody watches: %q", term.String())
	}
}

func TestBar(t *testing.T) {
	for _, c := range []struct {
		n, total int
		want     string
	}{{0, 10, "    "}, {10, 10, "████"}, {5, 10, "██  "}, {1, 32, "▏   "}, {11, 10, "████"}, {0, 0, "    "}} {
		if got := bar(c.n, c.total, 4); got != c.want {
			t.Errorf("bar(%d, %d) = %q, want %q", c.n, c.total, got, c.want)
		}
	}
}

func TestText(t *testing.T) {
	if got := shellJoin("sh", "-c", "echo $HOME", "it's", ""); got != `sh -c 'echo $HOME' 'it'\''s' ''` {
		t.Error(got)
	}
	for d, want := range map[time.Duration]string{320 * time.Millisecond: "0.32s", 4100 * time.Millisecond: "4.1s", 185 * time.Second: "3m05s", 130 * time.Minute: "2h10m", 76 * time.Hour: "3d4h"} {
		if got := shortDuration(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
	for f, want := range map[float64]string{3: "3", 0.26186455: "0.261865", 1e-9: "1e-09", math.Inf(1): "+Inf"} {
		if got := number(f); got != want {
			t.Errorf("%v: %s, want %s", f, got, want)
		}
	}
	if got := cut("äöüß", 3); got != "äö…" {
		t.Error(got)
	}
}

func TestJSONHoldsAnyNumber(t *testing.T) {
	nan := math.NaN()
	b, err := json.Marshal(toJSONTrial(wire.Trial{Index: 3, State: wire.StateDone, Best: &nan}))
	if err != nil || !strings.Contains(string(b), `"best":"NaN"`) {
		t.Errorf("%s %v", b, err)
	}
}

func TestRanked(t *testing.T) {
	v := func(f float64) *float64 { return &f }
	tt := wire.TrialTable{Trials: []wire.Trial{{Index: 0}, {Index: 1, Best: v(3)}, {Index: 2, Best: v(1)}}}
	if r := ranked(tt); r[0].Index != 2 || r[2].Index != 0 {
		t.Errorf("minimize: %v", r)
	}
	tt.Maximize = true
	if r := ranked(tt); r[0].Index != 1 || r[2].Index != 0 {
		t.Errorf("maximize: %v", r)
	}
}

func TestParamsOnOneLine(t *testing.T) {
	got := paramsText(map[string]any{"a": "two\nlines", "b": "plain", "c": []byte("x\x1b[2J"), "d": "", "e": 0.5, "f": "a b"})
	if want := `a="two\nlines" b=plain c="x\x1b[2J" d="" e=0.5 f="a b"`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestStatusTellsTrouble(t *testing.T) {
	var out strings.Builder
	a := &app{out: &out}
	a.printStatus(wire.ClusterInfo{Name: "lab", Trouble: "the journal's disk is full", Pools: []wire.PoolInfo{{Name: "p", Why: "no room"}}}, true)
	for _, want := range []string{"trouble   the journal's disk is full\n", "no room"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in %s", want, out.String())
		}
	}
	b, err := json.Marshal(statusDoc(wire.ClusterInfo{Trouble: "full"}, true))
	if err != nil || !strings.Contains(string(b), `"trouble":"full"`) {
		t.Errorf("%s, %v", b, err)
	}
}

func TestScriptThatIsNotThere(t *testing.T) {
	dir := t.TempDir()
	s := wire.JobSpec{Kind: wire.KindTrain, Dir: dir, Command: []string{"python", "train.py"}}
	if err := checkScript(s); !errs.Is(err, errs.NotFound) {
		t.Errorf("got %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "train.py"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := checkScript(s); err != nil {
		t.Error(err)
	}
	s.Command = []string{"python", "-m", "pkg"}
	if err := checkScript(s); err != nil {
		t.Error(err)
	}
}

// TestTopologyIsShown: in a column of its own where any node knows it, and whole as JSON.
func TestTopologyIsShown(t *testing.T) {
	knows := wire.NodeInfo{ID: "a", Topology: wire.Topology{
		NUMA: []wire.NUMANode{{ID: 0, CPUs: []int{0, 1}}, {ID: 1, CPUs: []int{2}}},
		GPUs: []wire.GPUPlace{{UUID: "GPU-a", NUMA: 1, Links: []wire.Link{0, 2 * wire.LinkNV}}, {UUID: "GPU-b", NUMA: -1, Links: []wire.Link{2 * wire.LinkNV, 0}}},
	}}
	rows := nodeRows([]wire.NodeInfo{{ID: "b"}, knows})
	if rows[0][5] != "TOPOLOGY" || rows[1][5] != "" || rows[2][5] != "NV2, 2 NUMA nodes" || len(rows[1]) != len(rows[0]) {
		t.Errorf("%q", rows)
	}
	if rows := nodeRows([]wire.NodeInfo{{ID: "b"}}); slices.Contains(rows[0], "TOPOLOGY") {
		t.Errorf("%q", rows)
	}
	b, err := json.Marshal(toJSONNode(knows))
	want := `"topology":{"text":"NV2, 2 NUMA nodes","links":[["X","NV2"],["NV2","X"]],"numa":[{"node":0,"cpus":[0,1],"gpus":[]},{"node":1,"cpus":[2],"gpus":["GPU-a"]}]}`
	if err != nil || !strings.Contains(string(b), want) {
		t.Errorf("%s, %v", b, err)
	}
	if b, _ := json.Marshal(toJSONNode(wire.NodeInfo{})); strings.Contains(string(b), "topology") {
		t.Errorf("%s", b)
	}
}

func TestPoolsSayWhatFailed(t *testing.T) {
	p := wire.PoolInfo{Name: "box", Failures: []wire.NodeFailure{{Node: "box-1", Place: "gpu02", Why: "refused"}, {Node: "box-2", Why: "away"}}}
	if got := poolWhy(p); got != "gpu02: refused (and 1 more, see `launcher status`)" {
		t.Errorf("the pool: %q", got)
	}
	if p.Why = "asleep"; poolWhy(p) != "asleep" {
		t.Errorf("the pool: %q", poolWhy(p))
	}
}
