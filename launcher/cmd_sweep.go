package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"launcher/configs"
	"launcher/wire"
)

func (a *app) cmdSweep() *cobra.Command {
	var on, name string
	var detach bool
	c := &cobra.Command{
		Use:   "sweep FILE",
		Short: "search for good parameters: grid or random, stopping bad trials early",
		Long: `Run a sweep file (TOML, or W&B's YAML): each trial is a run of its command with parameters
of its own. A line is printed as each trial ends, and the best one at the end. The output
of the trials is in "launcher logs JOB --task TRIAL".`,
		Example: `  launcher sweep examples/digits/sweep.toml
  launcher sweep show 7`,
		Args: argCount(1, 1),
		RunE: func(c *cobra.Command, args []string) error {
			j, err := configs.LoadSweep(args[0])
			if err != nil {
				return err
			}
			if name != "" {
				j.Name = name
			}
			return a.launchFile(c.Context(), j, on, detach)
		},
	}
	c.Flags().StringVar(&on, "on", "", "bring this cluster SPEC up for the sweep, and down after it if it was not up")
	c.Flags().StringVar(&name, "name", "", "name of the job (default: the file's)")
	c.Flags().BoolVar(&detach, "detach", false, "print the job's number and return at once")
	c.AddCommand(a.cmdSweepShow(), &cobra.Command{
		Use:    "edit JOB",
		Short:  "change a running sweep (not in this version)",
		Hidden: true,
		RunE:   func(*cobra.Command, []string) error { return later("sweep edit") },
	})
	return c
}

func (a *app) cmdSweepShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show JOB",
		Short: "the table of a sweep's trials, best first",
		Args:  argCount(1, 1),
		RunE: func(c *cobra.Command, args []string) error {
			id, err := oneJob(args[0])
			if err != nil {
				return err
			}
			src, err := a.source(c.Context())
			if err != nil {
				return err
			}
			defer src.Close()
			t, err := src.trials(c.Context(), id)
			if err != nil {
				return err
			}
			if a.json {
				a.printJSON(trialsDoc(t))
				return nil
			}
			a.printTrials(t)
			return nil
		},
	}
}

func trialsDoc(t wire.TrialTable) doc {
	goal := "minimize"
	if t.Maximize {
		goal = "maximize"
	}
	return doc{"job": toJSONJob(t.Job), "metric": t.Metric, "goal": goal, "units": t.Units, "trials": mapAll(t.Trials, toJSONTrial)}
}

// ranked sorts trials by their best value, those without one last.
func ranked(t wire.TrialTable) []wire.Trial {
	out := slices.Clone(t.Trials)
	slices.SortStableFunc(out, func(a, b wire.Trial) int {
		switch {
		case a.Best == nil && b.Best == nil:
			return cmp.Compare(a.Index, b.Index)
		case a.Best == nil:
			return 1
		case b.Best == nil:
			return -1
		case t.Maximize:
			return cmp.Compare(*b.Best, *a.Best)
		}
		return cmp.Compare(*a.Best, *b.Best)
	})
	return out
}

func trialState(t wire.Trial) string {
	if t.Pruned {
		return "pruned"
	}
	return t.State.String()
}

func optional(f *float64) string {
	if f == nil {
		return "-"
	}
	return number(*f)
}

func (a *app) printTrials(t wire.TrialTable) {
	metric := cmp.Or(t.Metric, "metric")
	rows := [][]string{{"TRIAL", "STATE", "BEST " + metric, "LAST", "STEP", "TIME", "PARAMETERS"}}
	for _, k := range ranked(t) {
		rows = append(rows, []string{fmt.Sprint(k.Index), trialState(k), optional(k.Best), optional(k.Metric), fmt.Sprint(k.Step), took(k.Started, k.Ended), paramsText(k.Params)})
	}
	a.table(rows)
	pruned := 0
	for _, k := range t.Trials {
		if k.Pruned {
			pruned++
		}
	}
	a.note("%s, %d stopped early, %d steps in all; job %d %s", plural(len(t.Trials), "trial"), pruned, t.Units, t.Job.ID, t.Job.State)
}

// launchSweep runs a sweep in the foreground and ends with its best trial.
func (a *app) launchSweep(ctx context.Context, l launch) error {
	l.style = styleNone
	l.after = a.printBest
	return a.launch(ctx, l)
}

// printBest prints the best trial of a sweep, and all of them where they cannot be asked for later.
func (a *app) printBest(ctx context.Context, t target, job wire.JobID, gone bool) error {
	c, err := dial(ctx, t)
	if err != nil {
		return err
	}
	defer c.Close()
	var tt wire.TrialTable
	if err := c.call(ctx, wire.MsgTrials, wire.TrialsRequest{Job: job}, &tt); err != nil {
		return err
	}
	if a.json {
		d := trialsDoc(tt)
		d["event"] = "trials"
		a.printJSON(d)
		return nil
	}
	pruned := 0
	for _, k := range tt.Trials {
		if k.Pruned {
			pruned++
		}
	}
	if gone {
		a.printTrials(tt)
	} else {
		a.note("%s, %d stopped early, %d steps in all; `launcher sweep show %d` lists them", plural(len(tt.Trials), "trial"), pruned, tt.Units, job)
	}
	if tt.Job.State == wire.StateDone && tt.Job.Cause != "" { // of a failed one the cause is told with its end
		a.note("%s", tt.Job.Cause)
	}
	if r := ranked(tt); len(r) > 0 && r[0].Best != nil {
		fmt.Fprintf(a.out, "best: trial %d  %s=%s  %s\n", r[0].Index, cmp.Or(tt.Metric, "metric"), number(*r[0].Best), paramsText(r[0].Params))
	}
	return nil
}

// sweepView prints a line as each trial ends, and on a terminal a progress line with the
// best so far.
type sweepView struct {
	a      *app
	target target
	job    wire.JobID
	name   string
	began  time.Time
	wake   chan struct{}
	quit   chan struct{}
	wg     sync.WaitGroup
	told   map[uint32]bool
}

func (a *app) newSweepView(t target, job wire.JobID, name string) *sweepView {
	return &sweepView{a: a, target: t, job: job, name: name, began: time.Now(), wake: make(chan struct{}, 1),
		quit: make(chan struct{}), told: map[uint32]bool{}}
}

// changed says that the job has a new version.
func (v *sweepView) changed() {
	select {
	case v.wake <- struct{}{}:
	default:
	}
}

// sweepPoll spaces questions about the table.
const sweepPoll = 250 * time.Millisecond

func (v *sweepView) start(ctx context.Context) {
	v.wg.Go(func() {
		var c *client
		defer func() {
			if c != nil {
				c.Close()
			}
		}()
		for last := false; !last; {
			select {
			case <-ctx.Done():
				return
			case <-v.quit:
				last = true
			case <-v.wake:
			}
			if c == nil {
				var err error
				if c, err = dial(ctx, v.target); err != nil {
					continue // the head is away; the follower says so
				}
			}
			var tt wire.TrialTable
			if err := c.call(ctx, wire.MsgTrials, wire.TrialsRequest{Job: v.job}, &tt); err != nil {
				c.Close()
				c = nil
				continue
			}
			v.show(tt)
			if !last {
				select {
				case <-ctx.Done():
				case <-v.quit:
				case <-time.After(sweepPoll):
				}
			}
		}
	})
}

func (v *sweepView) show(tt wire.TrialTable) {
	running, ended := 0, 0
	for _, k := range tt.Trials {
		switch {
		case k.State == wire.StateRunning:
			running++
		case k.State.Terminal():
			ended++
			if !v.told[k.Index] {
				v.told[k.Index] = true
				v.a.note("trial %-3d %-9s step %-4d %s=%-10s %s", k.Index, trialState(k), k.Step, cmp.Or(tt.Metric, "metric"), optional(k.Best), paramsText(k.Params))
			}
		}
	}
	line := progressLine(v.name, ended, 0, running, len(tt.Trials), v.began)
	if r := ranked(tt); len(r) > 0 && r[0].Best != nil {
		line += fmt.Sprintf("  best %s=%s", cmp.Or(tt.Metric, "metric"), number(*r[0].Best))
	}
	v.a.screen.progress(line)
}

func (v *sweepView) stop() {
	close(v.quit)
	v.wg.Wait()
}
