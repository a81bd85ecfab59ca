package core

import (
	"bytes"
	"cmp"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"launcher/internal/errs"
	"launcher/wire"
)

var rewrite = flag.Bool("rewrite", false, "write what the transcripts give now; read the diff before committing it")

// A transcript is blocks of commands, each followed by ---- and what the core gave: one
// line per record (rec ...) and per effect. TestTranscripts runs the commands and
// compares.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) {
			src, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			got := runTranscript(t, string(src))
			if got == string(src) {
				return
			}
			if *rewrite {
				if err := os.WriteFile(f, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			t.Errorf("%s differs; run with -rewrite and read the diff\n%s", f, firstDiff(string(src), got))
		})
	}
}

func firstDiff(a, b string) string {
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range x {
		if i >= len(y) || x[i] != y[i] {
			lo := max(0, i-6)
			hi := func(s []string) int { return min(len(s), i+6) }
			return fmt.Sprintf("line %d\nwant:\n%s\ngot:\n%s", i+1, strings.Join(x[lo:hi(x)], "\n"), strings.Join(y[min(lo, len(y)):hi(y)], "\n"))
		}
	}
	return "more at the end: " + strings.Join(y[len(x):min(len(y), len(x)+6)], "\n")
}

func runTranscript(t *testing.T, src string) string {
	w := newWorld(t)
	var out bytes.Buffer
	for block := range strings.SplitSeq(strings.TrimRight(src, "\n"), "\n\n") {
		if out.Len() > 0 {
			out.WriteString("\n")
		}
		cmds, _, _ := strings.Cut(block, "\n----")
		out.WriteString(cmds + "\n")
		if isComment(cmds) {
			continue
		}
		out.WriteString("----\n")
		w.log.Reset()
		for line := range strings.SplitSeq(cmds, "\n") {
			if !strings.HasPrefix(line, "#") {
				w.do(line)
			}
		}
		out.Write(w.log.Bytes())
	}
	return out.String()
}

func isComment(s string) bool {
	for l := range strings.SplitSeq(s, "\n") {
		if !strings.HasPrefix(l, "#") {
			return false
		}
	}
	return true
}

const epoch0 = int64(1_000_000) * second

// world runs one core and keeps its journal.
type world struct {
	t       *testing.T
	cfg     Config
	c       *Core
	now     int64
	journal [][]byte
	log     bytes.Buffer
	req     uint64
	env     bool
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, now: epoch0}
	w.cfg = Config{Hello: wire.Hello{Node: "n0", Epoch: 1}, Binary: "/bin/launcher", Socket: "/s/agent.sock", Cluster: "lab", Dir: "/s"}
	return w
}

// args splits a line into words and key=value options; quotes group.
func args(line string) (words []string, opt map[string]string) {
	opt = map[string]string{}
	var cur strings.Builder
	quoted := false
	end := func() {
		if cur.Len() == 0 {
			return
		}
		if k, v, ok := strings.Cut(cur.String(), "="); ok {
			opt[k] = v
		} else {
			words = append(words, cur.String())
		}
		cur.Reset()
	}
	for _, r := range line {
		switch {
		case r == '"':
			quoted = !quoted
		case r == ' ' && !quoted:
			end()
		default:
			cur.WriteRune(r)
		}
	}
	end()
	return words, opt
}

func (w *world) num(s string) int64 {
	if s == "" {
		return 0
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		w.t.Fatalf("not a number: %q", s)
	}
	return n
}

func (w *world) units(s string) int64 {
	if s == "" {
		return 0
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil {
		w.t.Fatalf("not a number: %q", s)
	}
	return int64(f * wire.Unit)
}

func (w *world) dur(s string) int64 {
	if s == "" {
		return 0
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		w.t.Fatal(err)
	}
	return int64(d)
}

func (w *world) proc(s string) wire.Proc {
	var p wire.Proc
	s, r, _ := strings.Cut(s, "/")
	p.Rank = uint32(w.num(r))
	s, a, _ := strings.Cut(s, "#")
	p.Attempt = wire.Attempt(w.num(a))
	task, _, err := wire.ParseTask(s)
	if err != nil {
		w.t.Fatal(err)
	}
	p.Task = task
	return p
}

func (w *world) tries(s string) (out []wire.Try) {
	if s == "" {
		return nil
	}
	for x := range strings.SplitSeq(s, ",") {
		out = append(out, w.proc(x).Try)
	}
	return out
}

func (w *world) resources(o map[string]string) wire.Resources {
	r := wire.Resources{CPU: w.units(o["cpu"]), GPU: w.units(o["gpu"]), Memory: w.num(o["memory"])}
	if o["license"] != "" {
		r.Custom = map[string]int64{"license": w.units(o["license"])}
	}
	return r
}

var reasons = map[string]wire.Reason{"": 0, "cancelled": wire.ReasonCancelled, "peer": wire.ReasonPeer, "pruned": wire.ReasonPruned, "preempted": wire.ReasonPreempted, "fenced": wire.ReasonFenced}

// do runs one line.
func (w *world) do(line string) {
	words, o := args(line)
	arg := func(i int) string {
		if i < len(words) {
			return words[i]
		}
		return ""
	}
	switch words[0] {
	case "node":
		total := w.resources(o)
		if n := int(w.num(o["cores"])); n > 0 {
			for i := range n {
				w.cfg.CPUs = append(w.cfg.CPUs, i)
			}
		}
		w.cfg.Hello.Total = total
		for i := range w.num(o["gpus"]) {
			w.cfg.Hello.GPUs = append(w.cfg.Hello.GPUs, wire.GPU{UUID: fmt.Sprintf("GPU-%d", i), Name: "A100"})
		}
		w.cfg.Grace = w.dur(o["grace"])
		if o["deadline"] != "" {
			w.cfg.Hello.Deadline = (w.now + w.dur(o["deadline"])) / second
		}
		w.cfg.Signalled = o["signalled"] != ""
		w.c = New(w.cfg, NewState())
	case "leavesoon":
		ev := LeaveSoon{Why: o["why"], Grace: w.dur(o["grace"])}
		if o["in"] != "" {
			ev.By = w.now + w.dur(o["in"])
		}
		w.step(ev)
	case "resources":
		ev := ResourcesChanged{Total: w.resources(o), GPUs: append([]wire.GPU(nil), w.cfg.Hello.GPUs...)}
		for i := range ev.GPUs {
			ev.GPUs[i].Busy = strings.Contains(o["busy"], ev.GPUs[i].UUID)
		}
		w.step(ev)
	case "up":
		w.step(HeadUp{})
	case "down":
		w.step(HeadDown{Why: "test"})
	case "welcome":
		w.step(FromHead{wire.Welcome{Cluster: "lab", HeadEpoch: wire.Epoch(max(1, w.num(o["epoch"]))), Grace: w.dur(o["grace"]), Acked: uint64(w.num(o["acked"])), Drop: w.tries(o["drop"])}})
	case "job":
		spec := wire.JobSpec{Kind: wire.Kind(arg(2)), Command: strings.Fields(o["cmd"]), Dir: "/home/u", Resources: w.resources(o),
			TimeLimit: w.dur(o["time"]), Grace: w.dur(o["grace"]), Priority: int(w.num(o["priority"])), Ranks: uint32(max(1, w.num(o["ranks"]))), Exclusive: o["exclusive"] != ""}
		if o["lines"] != "" {
			spec.Array = &wire.ArraySpec{Lines: strings.Split(o["lines"], ",")}
		}
		if spec.Kind == wire.KindTrain {
			spec.Train = &wire.TrainSpec{MaxRestarts: 3, Workers: spec.Ranks}
		}
		w.step(FromHead{wire.Job{Job: wire.JobID(w.num(arg(1))), Spec: spec, Record: "/r/" + arg(1)}})
	case "assign":
		m := wire.Assign{Job: wire.JobID(w.num(arg(1)))}
		for _, x := range words[2:] {
			if i, a, ok := strings.Cut(x, "#"); ok {
				it := wire.Item{Index: uint32(w.num(i)), Attempt: wire.Attempt(w.num(a)), Line: o["line"], Checkpoint: o["checkpoint"], Step: w.num(o["step"]), Command: strings.Fields(o["cmd"])}
				if len(it.Command) == 0 {
					it.Command = nil
				}
				if o["params"] != "" {
					it.Params = []byte(o["params"])
				}
				m.Items = append(m.Items, it)
			} else {
				a, b, _ := strings.Cut(x, "-")
				m.Ranges = append(m.Ranges, wire.Range{From: uint32(w.num(a)), To: uint32(w.num(b)) + 1})
			}
		}
		w.step(FromHead{m})
	case "withdraw":
		w.step(FromHead{wire.Withdraw{Job: wire.JobID(w.num(arg(1))), Max: uint32(w.num(o["max"]))}})
	case "stop":
		grace := int64(-1)
		if o["grace"] != "" {
			grace = w.dur(o["grace"])
		}
		w.step(FromHead{wire.Stop{Job: wire.JobID(w.num(arg(1))), All: arg(2) == "all", Tries: w.tries(o["tries"]), Reason: reasons[o["reason"]], Grace: grace, Cause: o["cause"], Rank: int32(w.num(o["rank"]))}})
	case "reserve":
		w.step(FromHead{wire.Reserve{Gang: w.proc(arg(1)).Try, Count: uint32(w.num(o["count"])), Until: w.now + w.dur(o["until"])}})
	case "start":
		m := wire.Start{Gang: w.proc(arg(1)).Try, MasterAddr: "10.0.0.1", MasterPort: 29400, Restarts: uint32(w.num(o["restarts"])), Item: wire.Item{Checkpoint: o["checkpoint"], Step: w.num(o["step"])}}
		m.Item.Index, m.Item.Attempt = m.Gang.Index, m.Gang.Attempt
		for x := range strings.SplitSeq(o["nodes"], ",") {
			n, c, _ := strings.Cut(x, ":")
			m.Nodes = append(m.Nodes, wire.GangNode{Node: wire.NodeID(n), Addr: "10.0.0." + n[1:] + ":7000", First: m.World, Count: uint32(w.num(c))})
			m.World += uint32(w.num(c))
		}
		w.step(FromHead{m})
	case "release":
		w.step(FromHead{wire.Release{Gang: w.proc(arg(1)).Try}})
	case "ack":
		w.step(FromHead{wire.Ack{Seq: uint64(w.num(arg(1)))}})
	case "advice":
		var deadline int64
		if o["deadline"] != "" {
			deadline = w.now + w.dur(o["deadline"])
		}
		w.step(FromHead{wire.Advice{Seq: uint64(w.num(o["seq"])), Try: w.proc(arg(1)).Try, Leave: wire.LeaveReason(o["leave"]), Deadline: deadline, Before: w.num(cmp.Or(o["before"], "0"))}})
	case "ends":
		m := wire.NodeEnds{Leave: wire.LeaveReason(o["leave"])}
		if o["in"] != "" {
			m.By = w.now + w.dur(o["in"])
		}
		if o["over"] != "" {
			m.Over = w.now + w.dur(o["over"])
		}
		w.step(FromHead{m})
	case "checkpoint":
		m := wire.Checkpoint{Try: w.proc(arg(1)).Try, Step: w.num(o["step"]), Path: o["path"]}
		if o["delete"] != "" {
			m.Delete = strings.Split(o["delete"], ",")
		}
		w.step(FromHead{m})
	case "forget":
		w.step(FromHead{wire.Forget{Job: wire.JobID(w.num(arg(1)))}})
	case "shutdown":
		w.step(FromHead{wire.Shutdown{Drain: arg(1) == "drain", Grace: w.dur(o["grace"]), Why: o["why"]}})
	case "started":
		for _, p := range words[1:] {
			w.step(ProcStarted{Proc: w.proc(p), PID: 100 + int(w.proc(p).Index), At: w.now})
		}
	case "failed":
		w.step(ProcFailed{Proc: w.proc(arg(1)), Code: int32(w.num(o["code"])), Err: errs.ToWire(errs.New(errs.NotFound, "%s", o["err"]))})
	case "exited":
		for _, p := range words[1:] {
			ev := ProcExited{Proc: w.proc(p), Code: int32(w.num(o["code"])), Signal: int32(w.num(o["sig"])), At: w.now, Leftover: o["leftover"] != "", Why: o["why"]}
			if o["start"] != "" {
				ev.Started = epoch0 + w.dur(o["start"])
			}
			if ev.Signal != 0 {
				ev.Code = 128 + ev.Signal
			}
			w.step(ev)
		}
	case "drained":
		for _, p := range words[1:] {
			w.step(OutputDrained{Proc: w.proc(p), LogEnd: w.num(o["end"])})
		}
	case "stopped":
		w.step(RankStopped{Proc: w.proc(arg(1))})
	case "groupfailed":
		w.step(GroupFailed{Gang: w.proc(arg(1)).Try, Rank: int32(w.num(o["rank"])), Cause: o["cause"]})
	case "local":
		ops := map[string]LocalOp{"report": OpReport, "leave": OpLeave, "params": OpParams, "checkpoint": OpCheckpoint, "join": OpJoin, "check": OpCheck}
		w.req++
		var proc wire.Proc
		if arg(2) != "" {
			proc = w.proc(arg(2))
		}
		ev := Local{Req: w.req, Proc: proc, Op: ops[arg(1)], Step: w.num(o["step"]), Checkpoint: o["dir"]}
		if o["loss"] != "" {
			f, _ := strconv.ParseFloat(o["loss"], 64)
			ev.Metrics = map[string]float64{"loss": f}
		}
		w.step(ev)
	case "held":
		w.step(OutputHeld{Job: wire.JobID(w.num(arg(1))), Why: o["why"]})
	case "python":
		w.step(PythonFound{Python: arg(1)})
	case "shipped":
		w.step(LogsShipped{})
	case "flush":
		w.step(Flush{})
	case "pass": // time goes by, with the ticks that the core asks for
		end := w.now + w.dur(arg(1))
		for {
			due := w.c.Due()
			if due == 0 || due > end {
				break
			}
			w.now = max(w.now, due)
			before := w.log.Len()
			w.step(Tick{})
			if w.c.Due() != 0 && w.c.Due() <= w.now {
				w.t.Fatalf("the core asks for a tick at %d again and again", w.c.Due())
			}
			if w.log.Len() > before {
				fmt.Fprintf(&w.log, "  at +%s\n", time.Duration(w.now-epoch0))
			}
		}
		w.now = end
		w.step(Tick{})
	case "crash": // the agent is killed; the supervisor knows the given processes
		var procs []ProcInfo
		for _, x := range words[1:] {
			procs = append(procs, ProcInfo{Proc: w.proc(strings.TrimPrefix(x, "x:")), PID: 7, At: w.now, Exited: strings.HasPrefix(x, "x:")})
		}
		w.rebuild()
		w.step(Recovered{Procs: procs})
	case "compact":
		w.journal = nil
		for _, r := range w.c.s.Snapshot() {
			w.journal = append(w.journal, Encode(nil, r))
		}
	case "env":
		w.env = arg(1) == "on"
	case "state":
		fmt.Fprintf(&w.log, "free %s, queued %d, with room %d, unacked %d, seq %d\n", w.c.Free(), w.c.s.queued(), len(w.c.s.tries), len(w.c.s.unacked), w.c.s.seq)
	default:
		w.t.Fatalf("unknown command %q", line)
	}
}

// rebuild makes a new core of what the journal says.
func (w *world) rebuild() {
	s := NewState()
	for _, b := range w.journal {
		r, err := Decode(b)
		if err != nil {
			w.t.Fatal(err)
		}
		s.Apply(r)
	}
	w.c = New(w.cfg, s)
}

func (w *world) step(ev Event) {
	out := w.c.Step(w.now, ev)
	for _, r := range out.Records {
		w.journal = append(w.journal, Encode(nil, r))
		fmt.Fprintf(&w.log, "  rec %s\n", show(r))
	}
	for _, e := range out.Effects {
		if s, ok := e.(Spawn); ok && !w.env {
			s.Job, s.Env, s.Soft, s.Dir, s.Hostfile = nil, nil, nil, "", nil
			e = s
		}
		if h, ok := e.(ToHead); ok {
			fmt.Fprintf(&w.log, "> %s\n", show(h.Msg))
			continue
		}
		fmt.Fprintf(&w.log, "%s\n", show(e))
	}
	checkInvariants(w.t, w.c)
}

// show writes a struct with its non-zero fields.
func show(v any) string {
	switch x := v.(type) {
	case wire.Resources:
		return "(" + x.String() + ")"
	case fmt.Stringer:
		return x.String()
	case *wire.Job:
		return "job"
	case wire.LeaveReason:
		return strconv.Quote(string(x))
	}
	r := reflect.ValueOf(v)
	switch r.Kind() {
	case reflect.Struct:
		var b strings.Builder
		b.WriteString(strings.TrimPrefix(r.Type().Name(), "Rec"))
		sep := "{"
		for i := range r.NumField() {
			if f := r.Type().Field(i); f.IsExported() && !r.Field(i).IsZero() {
				if r.Field(i).Kind() == reflect.Int64 && r.Field(i).Int() > epoch0/2 {
					fmt.Fprintf(&b, "%s%s +%s", sep, f.Name, time.Duration(r.Field(i).Int()-epoch0))
				} else {
					fmt.Fprintf(&b, "%s%s %s", sep, f.Name, show(r.Field(i).Interface()))
				}
				sep = ", "
			}
		}
		if sep == "{" {
			return b.String()
		}
		return b.String() + "}"
	case reflect.Pointer:
		return show(r.Elem().Interface())
	case reflect.Slice:
		if b, ok := v.([]byte); ok {
			return strconv.Quote(string(b))
		}
		var parts []string
		for i := range r.Len() {
			parts = append(parts, show(r.Index(i).Interface()))
		}
		return "[" + strings.Join(parts, " ") + "]"
	case reflect.String:
		return strconv.Quote(r.String())
	}
	return fmt.Sprint(v)
}
