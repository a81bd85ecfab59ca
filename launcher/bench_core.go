package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"launcher"
	"launcher/internal/benchcore"
	"launcher/internal/errs"
	"launcher/python"
)

const benchCoreLong = `Measure tasks and objects on a local cluster of its own: the workloads of Ray's
microbenchmark and of its single-node envelope, by their names and definitions, in Python,
and hops of channels; with --go the like in Go. A rate is measured in four rounds of two
seconds after a second of warming up; the figure is their mean. Rows stand beside what the
machine can do at best, measured in the same process. ROWS are names or parts of names;
--list prints them.

"make bench-ray" measures Ray beside it on the same machine.`

// benchCoreOptions are the flags of bench core.
type benchCoreOptions struct {
	golang bool
	short  bool
	list   bool
	python string
	queued int
}

func (a *app) cmdBenchCore() *cobra.Command {
	var o benchCoreOptions
	c := &cobra.Command{
		Use:   "core [ROWS...]",
		Short: "tasks and objects, in Python or Go",
		Long:  benchCoreLong,
		RunE: func(c *cobra.Command, args []string) error {
			ctx, stop := detachOnInterrupt(c.Context())
			defer stop()
			err := a.benchCore(ctx, o, args)
			if err != nil && ctx.Err() != nil {
				return &exitError{code: exitCancelled, side: sideLauncher}
			}
			return err
		},
	}
	f := c.Flags()
	f.BoolVar(&o.golang, "go", false, "the Go workloads")
	f.BoolVar(&o.short, "short", false, "a look, not a measurement: short rounds, small numbers")
	f.BoolVar(&o.list, "list", false, "print the names of the rows")
	f.StringVar(&o.python, "python", "", "`PATH` of a Python with numpy and cloudpickle (default: the virtual environment, else python3)")
	f.IntVar(&o.queued, "queued", 1_000_000, "tasks of the row queued")
	return c
}

// coreTargets are what rows are to reach besides Ray's figures (which make bench-ray shows):
// a share of the limit, or a value where there is no limit or less is better.
var coreTargets = map[string]float64{"single_client_put_gigabytes": 0.85, "init_to_first_result": 0.3, "channel_hop": 50}

func (a *app) benchCore(ctx context.Context, o benchCoreOptions, rows []string) (err error) {
	if o.queued < 1 {
		return errs.New(errs.Invalid, "--queued %d: give 1 or more", o.queued)
	}
	e, err := newBenchEnv(a, 1)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := e.close(); err == nil {
			err = cerr
		}
	}()
	cmd, err := e.coreCommand(ctx, o, rows)
	if err != nil {
		return err
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return errs.Wrap(errs.Exhausted, err, "a pipe")
	}
	if err := cmd.Start(); err != nil {
		return errs.Wrap(errs.NotFound, err, "cannot start %s", cmd.Path)
	}
	rerr := a.coreRows(out, o)
	if werr := cmd.Wait(); werr != nil {
		return errs.New(errs.Unavailable, "the benchmark ended with %v: %s", werr, lastLines(stderr.String(), 6))
	}
	if rerr == nil && a.json && !o.list {
		a.printJSON(doc{"event": "end"})
	}
	return rerr
}

// coreCommand is the program that measures: a driver, which starts a local cluster for
// itself below this environment's home.
func (e *benchEnv) coreCommand(ctx context.Context, o benchCoreOptions, rows []string) (*exec.Cmd, error) {
	if o.golang {
		args := []string{"bench-core-go"}
		if o.short {
			args = append(args, "--short")
		}
		if o.list {
			args = append(args, "--list")
		}
		c := e.command(ctx, append(args, rows...)...)
		c.Env = e.programEnv("")
		return c, nil
	}
	py, err := numpyPython(ctx, o.python)
	if err != nil {
		return nil, err
	}
	if py == "" {
		return nil, errs.New(errs.NotFound, "the Python workloads need a Python with numpy").Hint("name one: --python PATH").Hint("launcher bench core --go measures the Go SDK")
	}
	sdk, err := python.Extract(filepath.Join(e.home, "cache"))
	if err != nil {
		return nil, err
	}
	args := []string{"-m", "launcher._bench", "--rows", strings.Join(rows, ","), "--queued", strconv.Itoa(o.queued)}
	if o.short {
		args = append(args, "--short", "--queued", strconv.Itoa(min(o.queued, 10_000)))
	}
	if o.list {
		args = append(args, "--list")
	}
	c := exec.CommandContext(ctx, py, args...)
	c.Env = e.programEnv(sdk)
	c.Cancel = func() error { return c.Process.Signal(os.Interrupt) }
	c.WaitDelay = 10 * time.Second
	return c, nil
}

// programEnv is the environment of a program that is in no run and finds no cluster up.
func (e *benchEnv) programEnv(sdk string) []string {
	var out []string
	for _, kv := range headEnv(e.home, "") {
		if k, _, _ := strings.Cut(kv, "="); k != "LAUNCHER_CLUSTER" && (k != "PYTHONPATH" || sdk == "") {
			out = append(out, kv)
		}
	}
	if sdk != "" {
		out = append(out, "PYTHONPATH="+sdk)
	}
	return append(out, "LAUNCHER="+e.binary)
}

// coreLine is a row as either program prints it.
type coreLine struct {
	Row     string  `json:"row"`  // Python
	What    string  `json:"what"` // Go
	Value   float64 `json:"value"`
	Sd      float64 `json:"sd"`
	Unit    string  `json:"unit"`
	N       int     `json:"n"`
	Limit   float64 `json:"limit"`
	LimitIs string  `json:"limit_is"`
	Of      string  `json:"of"`
	Target  float64 `json:"target"`
	Less    bool    `json:"less"`
	Steal   float64 `json:"steal"`
}

func (a *app) coreRows(out io.Reader, o benchCoreOptions) error {
	lines := bufio.NewScanner(out)
	for first := true; lines.Scan(); {
		if o.list {
			fmt.Fprintln(a.out, lines.Text())
			continue
		}
		var l coreLine
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil || l.Row+l.What == "" {
			continue // what the program printed besides
		}
		r := benchRow{Bench: "core", What: l.Row + l.What, Value: l.Value, Unit: l.Unit, Limit: l.Limit, Of: l.LimitIs + l.Of, Target: l.Target, Less: l.Less, Steal: l.Steal}
		if r.Limit > 0 {
			r.Ratio = r.Value / r.Limit
		}
		if r.Target == 0 {
			r.Target = coreTargets[r.What]
		}
		if l.Sd > 0 && !a.json {
			r.What += fmt.Sprintf(" (±%.0f%%)", 100*l.Sd/l.Value)
		}
		if first && !a.json {
			a.benchHeading()
			first = false
		}
		a.benchRow(r)
	}
	if err := lines.Err(); err != nil {
		return errs.Wrap(errs.Corrupt, err, "the benchmark's rows")
	}
	return nil
}

func lastLines(s string, n int) string {
	l := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(l[max(0, len(l)-n):], "; ")
}

// cmdBenchCoreGo is the program of the Go workloads: this binary as a driver. Its workers
// are this binary too (see main).
func (a *app) cmdBenchCoreGo() *cobra.Command {
	var short, list bool
	c := &cobra.Command{
		Use: "bench-core-go", Short: "the driver of the Go workloads", Hidden: true,
		RunE: func(_ *cobra.Command, args []string) error {
			for _, part := range args {
				if !slices.ContainsFunc(benchcore.Names(), func(n string) bool { return strings.Contains(n, part) }) {
					return errs.New(errs.Invalid, "there is no row like %q", part).Hint("there are: %s", strings.Join(benchcore.Names(), "; "))
				}
			}
			if list {
				fmt.Fprintln(a.out, strings.Join(benchcore.Names(), "\n"))
				return nil
			}
			if len(args) == 0 {
				args = []string{""}
			}
			launcher.Main(func(ctx context.Context) error {
				for _, part := range args {
					o := benchcore.Options{Filter: part, Emit: a.coreRow}
					if short {
						o.Rounds, o.Round, o.Warm, o.Scale = 2, 300*time.Millisecond, 200*time.Millisecond, 0.01
					}
					if _, err := benchcore.Run(ctx, o); err != nil {
						return err
					}
				}
				return nil
			})
			return nil
		},
	}
	c.Flags().BoolVar(&short, "short", false, "")
	c.Flags().BoolVar(&list, "list", false, "")
	return c
}

func (a *app) coreRow(r benchcore.Row) {
	b, err := json.Marshal(r)
	if err == nil {
		fmt.Fprintln(a.out, string(b))
	}
}
