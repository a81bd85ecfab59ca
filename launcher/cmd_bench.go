package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"launcher/internal/errs"
)

func (a *app) cmdBench() *cobra.Command {
	var repeats int
	var py string
	var about strings.Builder
	for _, b := range benches() {
		fmt.Fprintf(&about, "  %-12s %s\n", b.name, b.about)
	}
	c := &cobra.Command{
		Use:   "bench [NAME...]",
		Short: "the benchmarks, each beside its limit",
		Args:  argCount(0, -1),
		Long: "Measure launcher on this machine, on a cluster of its own that is gone afterwards. Each\nfigure is the median of several runs and stands beside the limit measured in the same run;\nruns in which the host took CPU time away are repeated.\n\n" +
			about.String() + "  core         tasks and objects in Python or Go; see `launcher bench core --help`\n",
		RunE: func(c *cobra.Command, args []string) (err error) {
			all := benches()
			for _, n := range args {
				if !slices.ContainsFunc(all, func(b benchmark) bool { return b.name == n }) {
					var names []string
					for _, b := range all {
						names = append(names, b.name)
					}
					return errs.New(errs.Invalid, "there is no benchmark %q", n).Hint("there are: %s", strings.Join(names, ", "))
				}
			}
			if repeats < 1 {
				return errs.New(errs.Invalid, "--repeats %d: give 1 or more", repeats)
			}
			ctx, stop := detachOnInterrupt(c.Context())
			defer stop()
			python, err := numpyPython(ctx, py)
			if err != nil {
				return err
			}
			e, err := newBenchEnv(a, repeats)
			if err != nil {
				return err
			}
			e.python = python
			defer func() {
				if cerr := e.close(); err == nil && cerr != nil {
					err = cerr
				}
			}()
			if !a.json {
				a.benchHeading()
			}
			for _, b := range all {
				if len(args) > 0 && !slices.Contains(args, b.name) || len(args) == 0 && b.asked {
					continue
				}
				a.screen.progress("running " + b.name)
				if err := b.run(ctx, e, a.benchRow); err != nil {
					if ctx.Err() != nil {
						return &exitError{code: exitCancelled, side: sideLauncher}
					}
					return errs.Wrap(errs.Unknown, err, "benchmark %s", b.name)
				}
			}
			if a.json {
				a.printJSON(doc{"event": "end"})
			}
			return nil
		},
	}
	c.AddCommand(a.cmdBenchCore())
	c.Flags().StringVar(&py, "python", "", "`PATH` of a Python with numpy (default: the virtual environment, else python3)")
	c.Flags().IntVar(&repeats, "repeats", 3, "runs of each measurement")
	return c
}

func (a *app) benchHeading() {
	fmt.Fprintf(a.out, "%-12s %-44s %14s  %-8s %14s %8s %8s\n", "BENCH", "WHAT", "VALUE", "UNIT", "LIMIT", "RATIO", "TARGET")
}

func (a *app) benchRow(r benchRow) {
	if a.json {
		a.printJSON(doc{"event": "row", "bench": r.Bench, "what": r.What, "value": r.Value, "unit": r.Unit, "limit": r.Limit,
			"limit_is": r.Of, "ratio": r.Ratio, "target": r.Target, "less_is_better": r.Less, "met": r.Target == 0 || r.met(), "steal": r.Steal})
		return
	}
	dash := func(v float64, format string) string {
		if v == 0 {
			return "-"
		}
		return fmt.Sprintf(format, v)
	}
	line := fmt.Sprintf("%-12s %-44s %14s  %-8s %14s %8s %8s", r.Bench, r.What, number(r.Value), r.Unit, dash(r.Limit, "%.4g"), dash(r.Ratio, "%.2f"), dash(r.Target, "%.3g"))
	if r.Target > 0 && !r.met() {
		line += "  short of it"
	}
	if r.Of != "" {
		line += "  (limit: " + r.Of + ")"
	}
	if r.Steal > maxSteal {
		line += fmt.Sprintf("  (the host took %.0f%% of the CPU)", r.Steal*100)
	}
	a.screen.write(a.out, []byte(line+"\n"))
}
