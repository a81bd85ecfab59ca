package core

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"launcher/internal/errs"
	"launcher/jobs/run"
	"launcher/jobs/train"
	"launcher/wire"
)

var rewrite = flag.Bool("rewrite", false, "write what the transcripts give into testdata")

var testMachines = map[wire.Kind]Maker{wire.KindRun: run.New, wire.KindArray: run.New, wire.KindTrain: train.New, "trials": newTrials}

// TestTranscripts plays testdata/*.txt: blocks of commands, "----", and what the core
// gave. After every Step the records so far are replayed into an empty Durable, which
// must equal the core's.
//
//	head [pool=NAME:MIN:MAX ...]       a first head; without pools: the head crashes, its journal stays; "again": after a down; "moved PATH...": elsewhere, without these checkpoints
//	tick DURATION                      time passes, with a Tick each second
//	stall DURATION                     time passes without, then a Tick
//	hello NODE EPOCH RESOURCES [try=1.0#1 run=1.1#1 gang=2.0#1:FIRST:COUNT held=2.0#1:COUNT end=1.3#1=0 seq=N]
//	end NODE SEQ TRY[/RANK]=CODE[:REASON] ...
//	msg NODE TYPE JSON                 any other message
//	down NODE EPOCH [proof]
//	granted TOKEN | refused TOKEN | state HANDLE STATE
//	client ID TYPE JSON
func TestTranscripts(t *testing.T) {
	files, _ := filepath.Glob("testdata/*.txt")
	if len(files) < 5 {
		t.Fatalf("only %d transcripts", len(files))
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) {
			in, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			got := playFile(t, string(in))
			if *rewrite {
				if err := os.WriteFile(f, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != string(in) {
				t.Errorf("%s differs (go test ./head/core -run Transcripts -rewrite shows how):\n%s", f, firstDiff(string(in), got))
			}
		})
	}
}

func firstDiff(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range w {
		if i >= len(g) || w[i] != g[i] {
			return fmt.Sprintf("line %d\nwant: %s\ngot:  %s", i+1, w[i], strings.Join(g[min(i, len(g)):min(i+4, len(g))], "\n      "))
		}
	}
	return "the output is longer"
}

type player struct {
	t    *testing.T
	now  int64
	c    *Core
	log  [][]byte
	cfg  Config
	seqs map[string]uint64
}

func playFile(t *testing.T, in string) string {
	p := &player{t: t, now: 1_000_000 * second, seqs: map[string]uint64{}}
	var out strings.Builder
	for block := range strings.SplitSeq(strings.TrimRight(in, "\n"), "\n\n") {
		cmds, _, _ := strings.Cut(block, "\n----")
		out.WriteString(cmds)
		var res strings.Builder
		comment := true
		for line := range strings.Lines(cmds + "\n") {
			if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
				comment = false
				p.line(&res, line)
			}
		}
		if !comment {
			out.WriteString("\n----\n" + res.String())
		} else {
			out.WriteString("\n")
		}
		out.WriteString("\n")
	}
	return strings.TrimRight(out.String(), "\n") + "\n"
}

func (p *player) line(w *strings.Builder, line string) {
	f := strings.Fields(line)
	switch f[0] {
	case "head":
		d := NewDurable(testMachines)
		for _, b := range p.log {
			r, err := DecodeRecord(b)
			if err != nil {
				p.t.Fatal(err)
			}
			if err := d.Apply(r); err != nil {
				p.t.Fatal(err)
			}
		}
		p.cfg.Again = len(f) == 2 && f[1] == "again"
		p.cfg.Gone = nil
		if len(f) > 1 && f[1] == "moved" {
			p.cfg.Term++
			for _, x := range d.Checkpoints() {
				if slices.Contains(f[2:], x.Path) {
					p.cfg.Gone = append(p.cfg.Gone, x)
				}
			}
		} else if len(f) > 1 && !p.cfg.Again {
			p.cfg = Config{Cluster: "lab", Nonce: "n", RecordDir: "/rec", Machines: testMachines, Version: "v"}
			for _, x := range f[1:] {
				x = strings.TrimPrefix(x, "pool=")
				v := strings.Split(x, ":")
				pool := wire.Pool{Name: v[0], Backend: "fake", Min: atoi(v[1]), Max: atoi(v[2])}
				if len(v) > 3 {
					pool.Idle = dur(p.t, v[3])
				}
				p.cfg.Pools = append(p.cfg.Pools, pool)
			}
		}
		p.c = New(p.cfg, d)
		p.step(w, Start{})
	case "tick":
		for left := dur(p.t, f[1]); left > 0; left -= second {
			p.now += min(left, second)
			p.step(w, Tick{})
		}
	case "stall": // nothing is looked at for a while
		p.now += dur(p.t, f[1])
		p.step(w, Tick{})
	case "hello":
		h := wire.Hello{Node: wire.NodeID(f[1]), Epoch: wire.Epoch(atoi(f[2])), Host: "h", Addr: f[1] + ":1", Clock: p.now}
		for _, x := range f[3:] {
			k, v, _ := strings.Cut(x, "=")
			switch k {
			case "cpu":
				h.Total.CPU = int64(atoi(v)) * wire.Unit
			case "gpu":
				h.Total.GPU = int64(atoi(v)) * wire.Unit
			case "deadline":
				h.Deadline = (p.now + dur(p.t, v)) / second
			case "try", "run":
				h.Tries = append(h.Tries, wire.TryState{Try: try(p.t, v), Running: k == "run", Started: p.now})
			case "gang", "held":
				g := strings.Split(v, ":")
				s := wire.GangState{Gang: try(p.t, g[0]), Started: k == "gang", First: uint32(atoi(g[1])), Count: uint32(atoi(g[2])), Live: uint32(atoi(g[2]))}
				h.Gangs = append(h.Gangs, s)
			case "report": // TRY/RANK:STEP:NO:DIR
				g := strings.Split(v, ":")
				who, rank, _ := strings.Cut(g[0], "/")
				h.Reports = append(h.Reports, wire.Report{Proc: wire.Proc{Try: try(p.t, who), Rank: uint32(atoi(rank))}, Step: int64(atoi(g[1])), No: uint64(atoi(g[2])), Checkpoint: g[3]})
			case "end":
				h.Unacked.Items = append(h.Unacked.Items, p.ended(v))
			case "seq":
				h.Unacked.Seq = uint64(atoi(v))
			default:
				p.t.Fatalf("what is %q?", x)
			}
		}
		p.step(w, AgentUp{Node: h.Node, Epoch: h.Epoch, Hello: h})
	case "end":
		m := wire.Done{Seq: uint64(atoi(f[2]))}
		for _, x := range f[3:] {
			m.Items = append(m.Items, p.ended(x))
		}
		p.step(w, AgentMsg{Node: wire.NodeID(f[1]), Epoch: p.epoch(f[1]), Msg: m})
	case "msg":
		p.step(w, AgentMsg{Node: wire.NodeID(f[1]), Epoch: p.epoch(f[1]), Msg: p.value(f[2], line, map[string]any{
			"Running": wire.Running{}, "Returned": wire.Returned{}, "Reserved": wire.Reserved{}, "Report": wire.Report{}, "Beat": wire.Beat{}, "GangGone": wire.GangGone{}, "Leaving": wire.Leaving{},
			"Done": wire.Done{}, "Demand": wire.Demand{}, "LeaseGrant": wire.LeaseGrant{}, "LeaseBack": wire.LeaseBack{}, "PeerAsk": wire.PeerAsk{}, "Reach": wire.Reach{}})})
	case "down":
		p.step(w, AgentDown{Node: wire.NodeID(f[1]), Epoch: wire.Epoch(atoi(f[2])), Proof: len(f) > 3, Cause: "its guard says so"})
	case "granted":
		s := p.c.d.st.Subs[f[1]]
		ev := Submitted{Token: f[1]}
		for _, n := range s.Nodes {
			ev.Allocs = append(ev.Allocs, Alloc{Handle: []byte("at-" + string(n)), Nodes: []wire.NodeID{n}})
		}
		p.step(w, ev)
	case "refused":
		p.step(w, Submitted{Token: f[1], Err: errs.New(errs.Unavailable, "the backend is away")})
	case "found":
		ev := Found{Pool: f[1], Tokens: []string{f[2]}, Allocs: map[string][]Alloc{}}
		if len(f) > 3 {
			for _, n := range p.c.d.st.Subs[f[2]].Nodes {
				ev.Allocs[f[2]] = append(ev.Allocs[f[2]], Alloc{Handle: []byte("at-" + string(n)), Nodes: []wire.NodeID{n}})
			}
		}
		p.step(w, ev)
	case "state":
		pool, _, _ := strings.Cut(strings.TrimPrefix(f[1], "at-"), "-")
		p.step(w, AllocStatus{Pool: pool, Items: []AllocItem{{Handle: []byte(f[1]), State: AllocState(atoi(f[2])), Why: strings.Join(f[3:], " ")}}})
	case "logs":
		p.step(w, LogsDone{Job: wire.JobID(atoi(f[1]))})
	case "client":
		p.step(w, ClientReq{ID: uint64(atoi(f[1])), Req: p.value(f[2], line, map[string]any{
			"Submit": wire.Submit{}, "Watch": wire.Watch{}, "Cancel": wire.Cancel{}, "Why": wire.Why{}, "Drain": wire.DrainRequest{}, "Down": wire.Down{}, "Tasks": wire.TasksRequest{},
			"Jobs": wire.JobsRequest{}, "Pools": wire.PoolsRequest{}, "Nodes": wire.NodesRequest{}, "Update": wire.Update{}, "Trials": wire.TrialsRequest{}, "Info": wire.InfoRequest{}})})
	default:
		p.t.Fatalf("what is %q?", line)
	}
}

func (p *player) epoch(n string) wire.Epoch { return p.c.d.st.Nodes[wire.NodeID(n)].Epoch }

func (p *player) ended(s string) wire.Ended {
	who, how, _ := strings.Cut(s, "=")
	who, rank, _ := strings.Cut(who, "/")
	code, reason, _ := strings.Cut(how, ":")
	e := wire.Ended{Proc: wire.Proc{Try: try(p.t, who)}, Code: int32(atoi(code)), Started: p.now - second, Ended: p.now}
	if rank != "" {
		e.Proc.Rank = uint32(atoi(rank))
	}
	if reason != "" {
		e.Reason = wire.Reason(atoi(reason))
	}
	return e
}

func (p *player) value(name, line string, types map[string]any) any {
	v, ok := types[name]
	if !ok {
		p.t.Fatalf("what is %q?", line)
	}
	x := reflect.New(reflect.TypeOf(v))
	if i := strings.IndexByte(line, '{'); i >= 0 {
		dec := json.NewDecoder(strings.NewReader(line[i:]))
		dec.DisallowUnknownFields()
		if err := dec.Decode(x.Interface()); err != nil {
			p.t.Fatalf("%s: %v", line, err)
		}
	}
	return x.Elem().Interface()
}

func (p *player) step(w *strings.Builder, ev Event) {
	p.t.Helper()
	out := p.c.Step(p.now, ev)
	for _, r := range out.Records {
		p.log = append(p.log, EncodeRecord(r))
		fmt.Fprintf(w, "%s\n", show(r))
	}
	for _, e := range out.Effects {
		if s, ok := e.(SendAgent); ok {
			fmt.Fprintf(w, "  -> %s %s\n", s.Node, show(s.Msg))
			continue
		}
		fmt.Fprintf(w, "  %s\n", show(e))
	}
	checkReplay(p.t, p.c, p.log)
	if err := p.c.Check(); err != nil {
		p.t.Fatal(err)
	}
}

// checkReplay replays a journal into an empty Durable and compares.
func checkReplay(t *testing.T, c *Core, log [][]byte) {
	t.Helper()
	d := NewDurable(testMachines)
	for _, b := range log {
		r, err := DecodeRecord(b)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Apply(r); err != nil {
			t.Fatalf("replay: %v", err)
		}
	}
	a, b := d.Encode(), c.d.Encode()
	if !bytes.Equal(a, b) {
		t.Fatalf("replaying the records gives another Durable:\n%s\n%s", show(d.st), show(c.d.st))
	}
	s, err := DecodeDurable(a, testMachines)
	if err != nil {
		t.Fatal(err)
	}
	if !s.Equal(d) {
		t.Fatalf("a snapshot does not survive encoding")
	}
}

var hexRE = regexp.MustCompile(`0x[0-9a-f]+`)

// show renders a value with its zero fields left out.
func show(v any) string {
	return hexRE.ReplaceAllString(showValue(reflect.ValueOf(v)), "0x")
}

func showValue(v reflect.Value) string {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if v.IsNil() {
			return "nil"
		}
		if e, ok := v.Interface().(error); ok {
			return strconv.Quote(e.Error())
		}
		return showValue(v.Elem())
	case reflect.Struct:
		if v.CanInterface() {
			switch x := v.Interface().(type) {
			case wire.Try:
				return x.String()
			case wire.Proc:
				return x.String()
			case wire.Task:
				return x.String()
			case wire.Range:
				return fmt.Sprintf("[%d,%d)", x.From, x.To)
			case wire.Resources:
				return "{" + x.String() + "}"
			}
		}
		var s []string
		for i := range v.NumField() {
			if f := v.Type().Field(i); !v.Field(i).IsZero() && f.IsExported() {
				x := showValue(v.Field(i))
				if n, ok := v.Field(i).Interface().(int64); ok && n > 900_000*second {
					x = fmt.Sprintf("+%gs", float64(n-1_000_000*second)/float64(second))
				}
				s = append(s, f.Name+":"+x)
			}
		}
		return v.Type().Name() + "{" + strings.Join(s, " ") + "}"
	case reflect.Slice:
		if b, ok := v.Interface().([]byte); ok {
			return strconv.Quote(string(b))
		}
		var s []string
		for i := range v.Len() {
			s = append(s, showValue(v.Index(i)))
		}
		return "[" + strings.Join(s, " ") + "]"
	case reflect.String:
		if s := v.String(); strings.ContainsAny(s, " {}[]") {
			return strconv.Quote(s)
		}
	}
	return fmt.Sprint(v.Interface())
}

func atoi(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		panic(err)
	}
	return n
}

func dur(t *testing.T, s string) int64 {
	t.Helper()
	for unit, k := range map[string]int64{"ms": millisecond, "s": second, "h": 3600 * second} {
		if n, err := strconv.ParseInt(strings.TrimSuffix(s, unit), 10, 64); err == nil && strings.HasSuffix(s, unit) {
			return n * k
		}
	}
	t.Fatalf("%q is no duration", s)
	return 0
}

// try reads JOB.INDEX#ATTEMPT.
func try(t *testing.T, s string) wire.Try {
	t.Helper()
	task, a, _ := strings.Cut(s, "#")
	x, _, err := wire.ParseTask(task)
	if err != nil {
		t.Fatal(err)
	}
	return wire.Try{Task: x, Attempt: wire.Attempt(atoi(a))}
}
