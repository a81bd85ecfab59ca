package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"launcher/configs"
	"launcher/internal/errs"
	"launcher/wire"
)

// The commands of this file act on a job that is there: logs, attach, wait, cancel.

func (a *app) cmdLogs() *cobra.Command {
	var follow bool
	var rank, task int64
	c := &cobra.Command{
		Use:   "logs JOB[.INDEX]",
		Short: "the output of a job",
		Long: `Print the output of a job: what it wrote to standard output goes to standard output,
what it wrote to standard error to standard error. Works on the record of a cluster that
is down. With -f it goes on until the job has ended; Ctrl-C only stops looking.`,
		Args: argCount(1, 1),
		RunE: func(c *cobra.Command, args []string) error {
			t, has, err := wire.ParseTask(args[0])
			if err != nil {
				return err
			}
			if has {
				if c.Flags().Changed("task") {
					return errs.New(errs.Invalid, "logs %s: the task is named already; --task is one too many", args[0])
				}
				task = int64(t.Index)
			}
			src, err := a.source(c.Context())
			if err != nil {
				return err
			}
			defer src.Close()
			j, err := src.job(c.Context(), t.Job)
			if err != nil {
				return err
			}
			st := styleLines
			switch {
			case j.Kind == wire.KindTrain && rank < 0:
				st = styleRanks
			case j.Kind == wire.KindRun && j.Tasks == 1, task >= 0 && j.Kind == wire.KindArray, rank >= 0 && task >= 0:
				st = styleRaw
			}
			v := a.newView(t.Job, j.Name, st)
			defer func() { _ = v.lines.flush() }()
			req := wire.LogsRequest{Job: t.Job, Task: task, Rank: rank}
			if !follow || !src.up() || j.State.Terminal() && j.LogsDone {
				err := src.logs(c.Context(), req, v.output)
				if err == nil && j.State.Terminal() {
					_ = v.lines.flush()
					a.noteOutputs(j)
					if err := outputsErr(&j); err != nil {
						a.note("launcher: %s", errs.Line(err))
					}
				}
				return err
			}
			ctx, stop := detachOnInterrupt(c.Context())
			defer stop()
			f := &follower{a: a, target: src.target, job: t.Job, task: task, rank: rank, output: v.output}
			_, err = f.run(ctx, src.take())
			if ctx.Err() != nil {
				return nil
			}
			return err
		},
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the job has ended")
	c.Flags().Int64Var(&rank, "rank", -1, "only this rank")
	c.Flags().Int64Var(&task, "task", -1, "only this task")
	return c
}

// oneJob reads a command's JOB argument.
func oneJob(arg string) (wire.JobID, error) {
	t, has, err := wire.ParseTask(arg)
	if err != nil {
		return 0, err
	}
	if has {
		return 0, errs.New(errs.Invalid, "%s is a task, a job is wanted", arg).Hint("write %d", t.Job)
	}
	return t.Job, nil
}

func (a *app) cmdAttach() *cobra.Command {
	return &cobra.Command{
		Use:   "attach JOB",
		Short: "join a running job: its output from the start, its exit code",
		Long: `Show the output of a job from its start and pass its exit code on, as the command that
began it would have. Ctrl-C only detaches; "launcher cancel JOB" ends the job.`,
		Args: argCount(1, 1),
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
			j, err := src.job(c.Context(), id)
			if err != nil {
				return err
			}
			st := styleLines
			switch {
			case j.Kind == wire.KindTrain:
				st = styleRanks
			case j.Kind == wire.KindSweep:
				st = styleNone
			case j.Kind == wire.KindRun && j.Tasks == 1:
				st = styleRaw
			}
			v := a.newView(id, j.Name, st)
			if !src.up() {
				if err := src.logs(c.Context(), wire.LogsRequest{Job: id, Task: -1, Rank: -1}, v.output); err != nil {
					return err
				}
				_ = v.lines.flush()
				return a.endOf(c.Context(), src.target, j, v)
			}
			ctx, stop := detachOnInterrupt(c.Context())
			defer stop()
			f := &follower{a: a, target: src.target, job: id, task: -1, rank: -1, info: v.info}
			if st != styleNone || a.json {
				f.output = v.output
			}
			v.start(ctx, src.target)
			info, err := f.run(ctx, src.take())
			v.stop()
			if err != nil && ctx.Err() != nil {
				a.note("launcher: detached; job %d goes on", id)
				return nil
			}
			if err != nil {
				return err
			}
			if j.Kind == wire.KindSweep && !a.json {
				if err := a.printBest(c.Context(), src.target, id, false); err != nil {
					return err
				}
			}
			return a.endOf(c.Context(), src.target, info, v)
		},
	}
}

func (a *app) cmdWait() *cobra.Command {
	var bound string
	c := &cobra.Command{
		Use:   "wait JOB...",
		Short: "wait for jobs to end and pass the exit code on",
		Long: `Wait until every job has ended. The exit code is that of the job (of several: the first
in the order given that did not end well); 124 when --time runs out, and the jobs go on.`,
		Args: argCount(1, -1),
		RunE: func(c *cobra.Command, args []string) error {
			ctx, stop := detachOnInterrupt(c.Context())
			defer stop()
			d := time.Duration(0)
			if bound != "" {
				var err error
				if d, err = configs.ParseDuration(bound); err != nil {
					return errs.Wrap(errs.Invalid, err, "--time")
				}
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, d)
				defer cancel()
			}
			var ids []wire.JobID
			for _, s := range args {
				id, err := oneJob(s)
				if err != nil {
					return err
				}
				ids = append(ids, id)
			}
			var first error
			var infos []wire.JobInfo
			for _, id := range ids {
				j, err := a.waitOne(ctx, id)
				switch {
				case err != nil && ctx.Err() == context.DeadlineExceeded:
					return exitWith(exitTimeout, errs.New(errs.Timeout, "job %d has not ended after %s", id, shortDuration(d)).Hint("`launcher why %d` says what it waits for", id))
				case err != nil && ctx.Err() != nil:
					return &exitError{code: exitCancelled, side: sideLauncher}
				case err != nil:
					return err
				}
				infos = append(infos, j)
				err = jobExit(j)
				if oerr := outputsErr(&j); err == nil && oerr != nil {
					err = exitWith(exitLauncher, oerr)
				}
				if err != nil && first == nil {
					first = err
				}
			}
			if a.json {
				code, side := exitCode(first)
				a.printJSON(doc{"jobs": mapAll(infos, toJSONJob), "exit": jsonExit{code, side}})
				a.told = true
			}
			return first
		},
	}
	c.Flags().StringVar(&bound, "time", "", `wait at most so long, for example "10m"`)
	return c
}

func (a *app) waitOne(ctx context.Context, id wire.JobID) (wire.JobInfo, error) {
	src, err := a.source(ctx)
	if err != nil {
		return wire.JobInfo{}, err
	}
	defer src.Close()
	j, err := src.job(ctx, id)
	if err == nil && j.State.Terminal() {
		err = a.awaitOutputs(ctx, src.target, &j)
	}
	if err != nil || j.State.Terminal() {
		return j, err
	}
	if !src.up() {
		return j, errs.New(errs.Unavailable, "job %d had not ended when cluster %s went down", id, src.target.name).
			Hint("`launcher up %s` brings the cluster back, and the job goes on", shellJoin(src.spec()))
	}
	f := &follower{a: a, target: src.target, job: id, task: -1, rank: -1}
	if j, err = f.run(ctx, src.take()); err == nil {
		err = a.awaitOutputs(ctx, src.target, &j)
	}
	return j, err
}

func (a *app) cmdCancel() *cobra.Command {
	var grace string
	c := &cobra.Command{
		Use:   "cancel JOB[.INDEX]...",
		Short: "end jobs or tasks: SIGTERM, a grace period, SIGKILL",
		Args:  argCount(1, -1),
		RunE: func(c *cobra.Command, args []string) error {
			g := int64(-1)
			if grace != "" {
				d, err := configs.ParseDuration(grace)
				if err != nil {
					return errs.Wrap(errs.Invalid, err, "--grace")
				}
				g = int64(d)
			}
			var reqs []wire.Cancel
			for _, s := range args {
				t, has, err := wire.ParseTask(s)
				if err != nil {
					return err
				}
				r := wire.Cancel{Job: t.Job, Grace: g}
				if has {
					r.Task = &t.Index
				}
				reqs = append(reqs, r)
			}
			cl, err := a.connect(c.Context())
			if err != nil {
				return err
			}
			defer cl.Close()
			var out []doc
			for i, r := range reqs {
				var got wire.Cancelled
				if err := cl.call(c.Context(), wire.MsgCancel, r, &got); err != nil {
					return err
				}
				out = append(out, doc{"subject": args[i], "stopped": got.Stopped})
				if !a.json {
					fmt.Fprintf(a.out, "%s: stopping %s\n", args[i], plural(int(got.Stopped), "running task"))
				}
			}
			if a.json {
				a.printJSON(doc{"cancelled": out})
			}
			return nil
		},
	}
	c.Flags().StringVar(&grace, "grace", "", "time between SIGTERM and SIGKILL (default: the job's own, 10s)")
	return c
}

func (a *app) cmdDrain() *cobra.Command {
	var simulate bool
	var grace string
	c := &cobra.Command{
		Use:   "drain NODE",
		Short: "let a node finish its work and take no more",
		Long: `Give a node no new work. What runs there ends by itself; with --simulate-preemption it is
told to save and leave by --grace, as a preemption would.`,
		Args: argCount(1, 1),
		RunE: func(c *cobra.Command, args []string) error {
			d, err := configs.ParseDuration(grace)
			if err != nil {
				return errs.Wrap(errs.Invalid, err, "--grace")
			}
			_, err = request[struct{}](c.Context(), a, wire.MsgDrain, wire.DrainRequest{Node: wire.NodeID(args[0]), Simulate: simulate, Grace: int64(d)})
			if err != nil {
				return err
			}
			if a.json {
				a.printJSON(doc{"node": args[0], "state": "draining"})
				return nil
			}
			fmt.Fprintf(a.out, "%s takes no new work\n", args[0])
			return nil
		},
	}
	c.Flags().BoolVar(&simulate, "simulate-preemption", false, "tell running work to save and leave")
	c.Flags().StringVar(&grace, "grace", "10s", "with --simulate-preemption: when it must have left")
	return c
}

func (a *app) cmdExec() *cobra.Command {
	var limit string
	c := &cobra.Command{
		Use:   "exec NODE -- CMD [ARG...]",
		Short: "run a command on one node, beside its work",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) < 2 {
				return errs.New(errs.Invalid, "launcher exec: name a node and a command").Hint("usage: launcher %s", c.Use).Hint("`launcher nodes` lists the nodes")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			f := jobFlags{grace: "10s", limit: limit}
			cmd := args[1:]
			if cmd[0] == "--" {
				cmd = cmd[1:]
			}
			if len(cmd) == 0 {
				return errs.New(errs.Invalid, "launcher exec: there is no command to run").Hint("usage: launcher %s", c.Use)
			}
			s, err := f.spec(cmd)
			if err != nil {
				return err
			}
			// It asks for nothing, so that it starts on a node that is full.
			s.Kind, s.Hidden, s.Node, s.Name = wire.KindRun, true, wire.NodeID(args[0]), "exec "+cmd[0]
			return a.launch(c.Context(), launch{spec: s, style: styleRaw})
		},
	}
	c.Flags().SetInterspersed(false)
	c.Flags().StringVar(&limit, "time", "", "time limit")
	return c
}
