// Package bench measures all-reduce within a node beside what the machine's memory can
// do, in one run: ranks are processes of their own, each on a core of its own; calls run
// back to back; a figure is the median over samples of the slowest rank; samples during
// which the host took processor time from this machine are thrown away; results are
// checked.
package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"time"

	"launcher/collectives"
	"launcher/internal/errs"
	"launcher/wire"
)

// Options say what to measure.
type Options struct {
	Rank       []string // command that runs Rank(stdin, stdout) in a process of its own
	Python     string   // interpreter with numpy for Python ranks; "" = none
	PythonPath string   // where the launcher package is
	Ranks      int      // 0 = 2, or as many as there are cores if that is less than 4
	Sizes      []int    // bytes; nil = DefaultSizes
	Samples    int      // per figure; 0 = 7
	Budget     time.Duration
	Log        func(format string, args ...any) // progress; nil = none
}

// DefaultSizes go from a small gradient to a large one.
var DefaultSizes = []int{4 << 10, 64 << 10, 1 << 20, 16 << 20, 64 << 20}

// Row is one figure.
type Row struct {
	What     string        `json:"what"`     // all-reduce, memcpy, read-modify-write
	Language string        `json:"language"` // go, python
	Buffers  string        `json:"buffers"`  // shared, private
	Ranks    int           `json:"ranks"`
	Bytes    int           `json:"bytes"`
	Time     time.Duration `json:"time_ns"` // of one call
	Best     time.Duration `json:"best_ns"`
	Worst    time.Duration `json:"worst_ns"`
	Rate     float64       `json:"gb_per_s"`           // bytes / time; memcpy and read-modify-write: of all ranks together
	Limit    float64       `json:"limit_gb_per_s"`     // what the ratio is to
	LimitIs  string        `json:"limit_is,omitempty"` // in words
	Ratio    float64       `json:"ratio"`              // Rate / Limit
	Target   float64       `json:"target"`             // of the ratio; 0 = none
	Rejected int           `json:"rejected"`           // samples thrown away
	Wrong    string        `json:"wrong,omitempty"`    // how the result was not what it should be
}

// Reached reports whether the figure meets its target.
func (r Row) Reached() bool { return r.Wrong == "" && r.Ratio >= r.Target }

// Run measures. An error means that ranks could not be run, not that they are slow.
func Run(ctx context.Context, o Options) ([]Row, error) {
	if o.Ranks == 0 {
		o.Ranks = max(2, min(len(cores()), 4))
	}
	if o.Sizes == nil {
		o.Sizes = DefaultSizes
	}
	if o.Samples == 0 {
		o.Samples = 7
	}
	if o.Log == nil {
		o.Log = func(string, ...any) {}
	}
	if len(o.Rank) == 0 {
		return nil, errs.New(errs.Internal, "the command of a rank is not given")
	}
	languages := []string{"go"}
	if o.Python != "" {
		languages = append(languages, "python")
	}
	var rows []Row
	ceilings := map[string]map[int]float64{}
	for _, lang := range languages {
		b, err := open(ctx, o, lang)
		if err != nil {
			return rows, err
		}
		for _, size := range o.Sizes {
			for _, m := range b.measures() {
				row, err := b.row(ctx, m, size)
				if err != nil {
					b.close()
					return rows, err
				}
				if m.buffers == "" {
					if ceilings[m.what] == nil {
						ceilings[m.what] = map[int]float64{}
					}
					ceilings[m.what][size] = row.Rate
				} else {
					row.limit(ceilings)
				}
				o.Log("%s", row)
				rows = append(rows, row)
			}
		}
		b.close()
	}
	return rows, nil
}

// What is measured; the names are also the orders to a rank.
const (
	allReduce = "all-reduce"
	memcpy    = "memcpy"
	modify    = "read-modify-write"
)

type measure struct{ what, buffers string }

// measures: the ceilings come first and only from Go ranks, for they are the machine's.
func (b *bench) measures() []measure {
	m := []measure{{allReduce, "shared"}, {allReduce, "private"}}
	if b.lang == "go" {
		m = append([]measure{{modify, ""}, {memcpy, ""}}, m...)
	}
	return m
}

// limit sets what a figure is held to: buffers in shared memory to what n cores can do
// that read and write everything once (R/n), private ones to a copy by one core.
func (r *Row) limit(ceilings map[string]map[int]float64) {
	if r.Buffers == "shared" {
		r.Limit, r.LimitIs = ceilings[modify][r.Bytes]/float64(r.Ranks), "R/n"
		if r.Language == "go" {
			switch {
			case r.Bytes >= 1<<20:
				r.Target = 0.8
			case r.Bytes >= 64<<10:
				r.Target = 0.6
			}
		}
	} else {
		r.Limit, r.LimitIs = ceilings[memcpy][r.Bytes], "memcpy"
		if r.Language == "go" && r.Ranks == 2 {
			switch {
			case r.Bytes >= 64<<20:
				r.Target = 0.7
			case r.Bytes >= 16<<20:
				r.Target = 0.4
			}
		}
	}
	if r.Limit > 0 {
		r.Ratio = r.Rate / r.Limit
	}
}

// String is one line for people.
func (r Row) String() string {
	s := fmt.Sprintf("%-17s %-6s %-7s %9s %11v %7.2f GB/s", r.What, r.Language, r.Buffers, wire.Bytes(int64(r.Bytes)), r.Time.Round(10*time.Nanosecond), r.Rate)
	if r.Limit > 0 {
		s += fmt.Sprintf("  %.2f of %s", r.Ratio, r.LimitIs)
	}
	if r.Target > 0 {
		s += fmt.Sprintf(" (to reach: %.2f)", r.Target)
	}
	if r.Wrong != "" {
		s += "  WRONG: " + r.Wrong
	}
	return s
}

// order is one line to a rank, answer the line back.
type order struct {
	Do      string `json:"do"` // join, run
	Path    string `json:"path,omitempty"`
	Rank    int    `json:"rank"`
	What    string `json:"what,omitempty"`
	Buffers string `json:"buffers,omitempty"`
	Bytes   int    `json:"bytes"`
	Calls   int    `json:"calls"`
	Check   bool   `json:"check"`
}

type answer struct {
	NS    int64  `json:"ns"` // of all calls
	Err   string `json:"err,omitempty"`
	Wrong string `json:"wrong,omitempty"`
}

type bench struct {
	o     Options
	lang  string
	node  *collectives.Node
	ranks []*rank
}

type rank struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func open(ctx context.Context, o Options, lang string) (*bench, error) {
	node, err := collectives.NewNode(collectives.NodeConfig{
		Group: wire.Try{Task: wire.Task{Job: 1}, Attempt: 1}, Self: "bench", CPUs: len(cores()),
		Nodes: []wire.GangNode{{Node: "bench", Count: uint32(o.Ranks)}},
	})
	if err != nil {
		return nil, err
	}
	b := &bench{o: o, lang: lang, node: node}
	path := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), node.File().Fd())
	for i := range o.Ranks {
		argv := o.Rank
		if lang == "python" {
			argv = []string{o.Python, "-m", "launcher._group_bench"}
		}
		r := &rank{cmd: exec.CommandContext(ctx, argv[0], argv[1:]...)}
		r.cmd.Stderr = os.Stderr
		r.cmd.Env = append(os.Environ(), "OMP_NUM_THREADS=1", "OPENBLAS_NUM_THREADS=1", "MKL_NUM_THREADS=1")
		if o.PythonPath != "" {
			r.cmd.Env = append(r.cmd.Env, "PYTHONPATH="+o.PythonPath)
		}
		r.in, err = r.cmd.StdinPipe()
		var out io.ReadCloser
		if err == nil {
			out, err = r.cmd.StdoutPipe()
		}
		if err == nil {
			r.out = bufio.NewScanner(out)
			err = pinned(i, r.cmd.Start)
		}
		if err != nil {
			b.close()
			return nil, errs.Wrap(errs.Unavailable, err, "cannot start a %s rank for the benchmark", lang)
		}
		b.ranks = append(b.ranks, r)
	}
	for i := range b.ranks {
		if _, err := b.tell(i, order{Do: "join", Path: path, Rank: i}); err != nil {
			b.close()
			return nil, err
		}
	}
	return b, nil
}

func (b *bench) close() {
	for _, r := range b.ranks {
		r.in.Close()
	}
	for _, r := range b.ranks {
		_ = r.cmd.Wait()
	}
	b.node.Close()
}

func (b *bench) send(i int, o order) error {
	line, err := json.Marshal(o)
	if err == nil {
		_, err = b.ranks[i].in.Write(append(line, '\n'))
	}
	return err
}

func (b *bench) hear(i int) (a answer, err error) {
	if !b.ranks[i].out.Scan() {
		return a, errs.New(errs.Lost, "rank %d of the benchmark (%s) has ended", i, b.lang)
	}
	if err := json.Unmarshal(b.ranks[i].out.Bytes(), &a); err != nil {
		return a, errs.Wrap(errs.Corrupt, err, "rank %d of the benchmark (%s)", i, b.lang)
	}
	if a.Err != "" {
		return a, errs.New(errs.Unknown, "rank %d of the benchmark (%s): %s", i, b.lang, a.Err)
	}
	return a, nil
}

func (b *bench) tell(i int, o order) (answer, error) {
	if err := b.send(i, o); err != nil {
		return answer{}, err
	}
	return b.hear(i)
}

// sample runs calls on all ranks and gives the time of one call on the slowest.
func (b *bench) sample(o order) (time.Duration, string, error) {
	for i := range b.ranks {
		o.Rank = i
		if err := b.send(i, o); err != nil {
			return 0, "", err
		}
	}
	var worst int64
	wrong := ""
	for i := range b.ranks {
		a, err := b.hear(i)
		if err != nil {
			return 0, "", err
		}
		worst = max(worst, a.NS)
		if a.Wrong != "" {
			wrong = fmt.Sprintf("rank %d: %s", i, a.Wrong)
		}
	}
	return time.Duration(worst / int64(o.Calls)), wrong, nil
}

// sampleTime is how long one sample should take.
const sampleTime = 40 * time.Millisecond

func (b *bench) row(ctx context.Context, m measure, size int) (Row, error) {
	row := Row{What: m.what, Language: b.lang, Buffers: m.buffers, Ranks: b.o.Ranks, Bytes: size}
	o := order{Do: "run", What: m.what, Buffers: m.buffers, Bytes: size, Calls: 3, Check: true}
	// The first touches the memory and checks the result, the second says how many calls
	// make a sample.
	_, wrong, err := b.sample(o)
	if err != nil {
		return row, err
	}
	row.Wrong = wrong
	o.Check = false
	once, _, err := b.sample(o)
	if err != nil {
		return row, err
	}
	o.Calls = int(min(max(sampleTime/max(once, 1), 3), 50_000))
	var times []time.Duration
	for len(times) < b.o.Samples && ctx.Err() == nil {
		before := readCPU()
		t, _, err := b.sample(o)
		if err != nil {
			return row, err
		}
		if readCPU().stolen(before) && row.Rejected < 2*b.o.Samples {
			row.Rejected++
			continue
		}
		times = append(times, t)
	}
	if len(times) == 0 {
		return row, errs.Wrap(errs.Cancelled, ctx.Err(), "benchmark")
	}
	slices.Sort(times)
	row.Time, row.Best, row.Worst = times[len(times)/2], times[0], times[len(times)-1]
	row.Rate = float64(size) / float64(row.Time)
	if m.what == modify {
		row.Rate *= float64(b.o.Ranks)
	}
	return row, nil
}
