package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"launcher/broker"
	"launcher/configs"
	"launcher/internal/errs"
	"launcher/internal/sockpath"
	"launcher/wire"
)

// downOptions are the flags of down.
type downOptions struct {
	drain bool
	grace time.Duration // 0 = defaultGrace
}

const (
	// downBound is how long the head may take past the grace of the work it stops.
	downBound = 60 * time.Second
	// goneBound is how long processes may take to be gone after they were ended.
	goneBound = 15 * time.Second
	// recordBound is that where the record comes from another machine.
	recordBound = 10 * time.Minute
)

func (a *app) cmdDown() *cobra.Command {
	var o downOptions
	var grace string
	var all, yes bool
	c := &cobra.Command{
		Use:   "down [NAME]",
		Short: "end a cluster: its processes, sockets, memory, allocations",
		Long: `End a cluster. Work that runs gets SIGTERM, then SIGKILL after --grace; with --drain it may
finish first. The record (journal, results, logs) stays until "launcher forget NAME".

Exit code 124: the cluster is down, but machines could not be asked whether their part has
ended. What runs there ends by itself, after the grace time of its pool without a head; the
next down or up ends what it reaches then.

Without NAME it means the only cluster up, and asks first; where there is no terminal to
ask on, NAME (or --yes) is needed as soon as any job would be stopped.`,
		Args: argCount(0, 1),
		RunE: func(c *cobra.Command, args []string) error {
			d, err := configs.ParseDuration(grace)
			if err != nil {
				return errs.Wrap(errs.Invalid, err, "--grace")
			}
			o.grace = max(d, time.Nanosecond)
			if all {
				return a.downAll(c.Context(), o)
			}
			t, err := a.downTarget(c.Context(), args, yes)
			if err != nil {
				return err
			}
			return a.downOne(c.Context(), t, o)
		},
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return completeClusters(), cobra.ShellCompDirectiveNoFileComp
		},
	}
	c.Flags().BoolVar(&o.drain, "drain", false, "let running work finish first")
	c.Flags().StringVar(&grace, "grace", "10s", "time between SIGTERM and SIGKILL")
	c.Flags().BoolVar(&all, "all", false, "every cluster of this $LAUNCHER_HOME")
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return c
}

// downTarget finds the cluster to end and, when the user did not name it, asks.
func (a *app) downTarget(ctx context.Context, args []string, yes bool) (target, error) {
	if len(args) == 1 {
		return named(args[0])
	}
	if a.cluster != "" {
		return named(a.cluster)
	}
	if os.Getenv("LAUNCHER_SOCKET") != "" {
		return target{}, errs.New(errs.Invalid, "inside a run, down needs the name of the cluster to end")
	}
	t, err := a.pick(false)
	if err != nil || yes || os.Getenv("LAUNCHER_CLUSTER") != "" {
		return t, err
	}
	if a.inTTY && a.tty {
		return t, a.confirm(ctx, "this ends cluster "+t.name, false)
	}
	_ = a.awake(ctx, t)
	c, err := dial(ctx, t)
	if err != nil {
		return t, nil // its head is gone: there is nothing to lose
	}
	defer c.Close()
	var jobs []wire.JobInfo
	if err := c.call(ctx, wire.MsgJobs, wire.JobsRequest{}, &jobs); err != nil {
		return t, err
	}
	if len(jobs) > 0 {
		return t, errs.New(errs.Invalid, "cluster %s has %s waiting or running, and down was not told its name", t.name, plural(len(jobs), "job")).
			Hint("launcher down %s", t.name)
	}
	return t, nil
}

func (a *app) downOne(ctx context.Context, t target, o downOptions) error {
	if err := a.takeDown(ctx, t, o); err != nil {
		return err
	}
	if err := leftBehind(t); err != nil {
		return err
	}
	if a.json {
		a.printJSON(doc{"cluster": t.name, "state": "down", "record": t.dir})
		return nil
	}
	fmt.Fprintf(a.out, "cluster %s is down; its record stays in %s\n", t.name, t.dir)
	return nil
}

func (a *app) downAll(ctx context.Context, o downOptions) error {
	recs, err := records()
	if err != nil {
		return err
	}
	var failed []error
	for _, r := range recs {
		t, err := named(r.name)
		if err == nil && (t.up || crashed(t.dir) || leftBehind(t) != nil || len(nodeProcesses(t)) > 0) {
			err = a.downOne(ctx, t, o)
		}
		if err != nil {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

// takeDown ends a cluster and makes sure that nothing of it is left.
func (a *app) takeDown(ctx context.Context, t target, o downOptions) error {
	if o.grace == 0 {
		o.grace = defaultGrace
	}
	var herr error
	switch {
	case answers(t.dir): // it may have come up since t was found
		t.up = true
	case crashed(t.dir) || leftBehind(t) != nil:
		t.up, herr = a.revive(ctx, t)
	}
	if t.up {
		herr = a.askDown(ctx, t, o)
		if errs.Is(herr, errs.Permission) || errs.Is(herr, errs.Version) || ctx.Err() != nil {
			return herr
		}
	}
	// Whatever the head said or could not say any more: what carries the mark of this
	// cluster goes. In the ordinary case there is nothing left, or only a last moment's.
	bound := goneBound
	if headAway(t.dir) { // its record has to be brought here
		bound = recordBound
	}
	if herr != nil || !t.up {
		bound = 0
	}
	if left := awaitGone(ctx, t, bound); len(left) > 0 {
		if herr != nil {
			a.note("launcher: the head could not end everything (%v); ending the rest without it", herr)
		}
		if left = endProcesses(ctx, t, o.grace); len(left) > 0 {
			e := errs.New(errs.Timeout, "cluster %s could not be ended: %s", t.name, processesText(len(left)))
			for _, p := range left {
				e = e.Hint("still there: %d %s", p.pid, cut(p.cmd, 80))
			}
			return e
		}
		// One that is just ending has no command line any more, but its sockets.
		for end := time.Now().Add(goneBound); answers(t.dir) && time.Now().Before(end); {
			time.Sleep(20 * time.Millisecond)
		}
	}
	return removeRemains(t)
}

// leftBehind is the error of a cluster that does not answer any more and is down but for
// what could not be asked; nil when nothing is known to be left.
func leftBehind(t target) error {
	if place := broker.HeadPlace(t.dir); place != "" {
		return exitWith(exitTimeout, errs.New(errs.Timeout, "the head of cluster %s, on %s, could not be told to end it", t.name, place).
			Hint("it and its nodes go on; `launcher down %s` tells them when %s can be reached", t.name, place))
	}
	var left []string
	if b, err := os.ReadFile(filepath.Join(t.dir, wire.DownLeftFile)); err == nil {
		left = strings.Split(strings.TrimSpace(string(b)), "\n")
	}
	for _, p := range broker.LeftBehind(t.dir) {
		left = append(left, p+" (a head that was replaced)")
	}
	if len(left) == 0 {
		return nil
	}
	return exitWith(exitTimeout, errs.New(errs.Timeout, "cluster %s is down, but nothing confirmed the end of %s", t.name, strings.Join(left, ", ")).
		Hint("what runs there ends by itself after the grace time of its pool without a head").
		Hint("`launcher down %s` or the next `launcher up` ends what can be reached then", t.name))
}

// noteLeft tells of what was left where going down is only a part of what was asked for.
func (a *app) noteLeft(t target) {
	if err := leftBehind(t); err != nil {
		a.note("launcher: %s", errs.Line(err))
	}
}

// headAway reports that the head of a cluster is on a host or in an allocation, and a front
// here in its place.
func headAway(dir string) bool {
	c, err := readHeadConfig(dir)
	_, moved := broker.ReadSeat(dir)
	return err == nil && (c.At != "" || moved)
}

// crashed reports that a cluster was never brought down though its head is gone.
func crashed(dir string) bool {
	f, err := broker.ReadClusterFile(dir)
	if err != nil {
		return false
	}
	host, err := os.Hostname()
	return err == nil && host == f.Host && !answers(dir)
}

// revive starts the head of a crashed cluster, so that it can end the cluster itself and
// write down how its jobs ended; or that of a cluster of which something was left when it
// went down, to go on with that. up is false when all is done by then.
func (a *app) revive(ctx context.Context, t target) (up bool, err error) {
	if !crashed(t.dir) { // with it, the head would begin anew
		if err := os.Remove(filepath.Join(t.dir, downFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, stateError(t.dir, err)
		}
	}
	if err := a.startAgain(ctx, t); err != nil {
		return false, err
	}
	return answers(t.dir), nil
}

// startAgain starts the head of a cluster (or the front in its place) as it was; one that
// only has to end the cluster may be done by then. Any number of commands may do it at once:
// one supervisor gets the state directory, and all wait for its head.
func (a *app) startAgain(ctx context.Context, t target) error {
	h, err := home()
	if err != nil {
		return err
	}
	hc, err := readHeadConfig(t.dir)
	if err != nil {
		return err
	}
	if hc.Binary, err = executable(); err != nil {
		return err
	}
	d := &stateDir{name: t.name, dir: t.dir, home: h, config: hc, asItWas: true}
	return d.start(ctx)
}

// returnBound is how long a head may be away before down goes on without it: one that
// died is started again by its supervisor and goes on with what it was doing.
const returnBound = 15 * time.Second

// moveBound is how long it may not answer while a front stands in for it, which may be
// having it started on another machine.
const moveBound = 40 * time.Second

// downFile says that a cluster went down completely.
const downFile = "down.done"

// wentDown reports that the cluster's head ended it completely: nothing is left to do.
func wentDown(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, downFile))
	return err == nil
}

// askDown tells the head to end the cluster and follows how far it is; a head that goes
// away meanwhile is told again when it is back.
func (a *app) askDown(ctx context.Context, t target, o downOptions) error {
	if !o.drain { // draining takes as long as the work takes
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.grace+downBound)
		defer cancel()
	}
	for silent := time.Now(); ; {
		heard, err := a.askDownOnce(ctx, t, o)
		if err == nil || wentDown(t.dir) {
			return nil
		}
		if heard {
			silent = time.Now()
		}
		if time.Since(silent) > moveBound {
			return err
		}
		for away := time.Now(); ; {
			if k := errs.KindOf(err); ctx.Err() != nil || k != errs.NotFound && !errs.Retryable(err) || time.Since(away) > returnBound {
				return err
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(50 * time.Millisecond):
			}
			if wentDown(t.dir) {
				return nil
			}
			if asleep(t.dir) {
				_ = a.startAgain(ctx, t)
			}
			var c *client
			if c, err = dial(ctx, t); err == nil {
				c.Close()
				break
			}
		}
	}
}

func (a *app) askDownOnce(ctx context.Context, t target, o downOptions) (heard bool, err error) {
	c, err := dial(ctx, t)
	if err != nil {
		return false, err
	}
	left, err := a.attend(ctx, c, false) // what hosts ask when they are reached anew
	if err != nil {
		left = func() {}
	}
	defer func() {
		c.Close()
		left()
	}()
	st, err := c.open(ctx, wire.MsgDown, wire.Down{Drain: o.drain, Grace: int64(o.grace)})
	if err != nil {
		return false, err
	}
	defer st.Close()
	stop := context.AfterFunc(ctx, c.Close)
	defer stop()
	last := ""
	for {
		var p wire.DownProgress
		err := answer(st, &p)
		switch {
		case errors.Is(err, io.EOF):
			return heard, errs.New(errs.Unavailable, "the head of cluster %s went away before all was ended", t.name)
		case ctx.Err() != nil:
			return heard, ctx.Err()
		case err != nil:
			return heard, err
		}
		heard = true
		if p.Text != "" && p.Text != last && a.tty {
			last = p.Text
			a.screen.progress(p.Text)
		}
		if p.Final {
			a.screen.progress("")
			return true, nil
		}
	}
}

// awaitGone waits until no process of the cluster is left, and gives those that are.
func awaitGone(ctx context.Context, t target, bound time.Duration) []process {
	end := time.Now().Add(bound)
	pause := 2 * time.Millisecond
	for {
		left := nodeProcesses(t)
		if len(left) == 0 || time.Now().After(end) {
			return left
		}
		select {
		case <-ctx.Done():
			return left
		case <-time.After(pause):
			pause = min(pause*3/2, 50*time.Millisecond)
		}
	}
}

// removeRemains takes away what a crash left in the state directory besides the record.
func removeRemains(t target) error {
	if answers(t.dir) {
		return errs.New(errs.Unavailable, "cluster %s still answers", t.name).Hint("try `launcher down %s` again", t.name)
	}
	if err := sockpath.Remove(t.sock); err != nil {
		return errs.Wrap(errs.Permission, err, "cannot remove the head's socket")
	}
	nodes := filepath.Join(t.dir, "nodes")
	ents, _ := os.ReadDir(nodes)
	for _, e := range ents {
		_ = sockpath.Remove(filepath.Join(nodes, e.Name(), "agent.sock"))
	}
	keepCrashes(t.dir)
	dirs := []string{nodes}
	if leftBehind(t) == nil { // else they say what is where
		dirs = append(dirs, filepath.Join(t.dir, "ssh"), filepath.Join(t.dir, "slurm"))
	}
	for _, dir := range dirs {
		if err := os.RemoveAll(dir); err != nil {
			return errs.Wrap(errs.Permission, err, "cannot remove the nodes' files")
		}
	}
	return nil
}

// process is one process of a cluster.
type process struct {
	pid  int
	kind string // node, slurm-node, supervise, agent, head, head-supervise; task for a user's
	cmd  string
}

// ownKinds are the hidden commands whose processes make a cluster.
var ownKinds = []string{"head-supervise", "head", "node", "slurm-node", "supervise", "agent"}

func (a *app) cmdForget() *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:   "forget NAME...",
		Short: "drop the record of a cluster that is down",
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 && !all {
				return errs.New(errs.Invalid, "launcher forget: name the cluster to forget").Hint("usage: launcher %s", c.Use)
			}
			if all {
				recs, err := records()
				if err != nil {
					return err
				}
				for _, r := range recs {
					if !r.up {
						args = append(args, r.name)
					}
				}
			}
			var gone []string
			for _, n := range args {
				t, err := named(n)
				if err != nil {
					return err
				}
				if t.up || len(nodeProcesses(t)) > 0 {
					return errs.New(errs.Invalid, "cluster %s is up", n).Hint("`launcher down %s` first", n)
				}
				if err := forget(t); err != nil {
					return err
				}
				gone = append(gone, n)
			}
			if a.json {
				a.printJSON(doc{"forgotten": mapAll(gone, func(s string) string { return s })})
			} else {
				fmt.Fprintf(a.out, "forgotten: %s\n", strings.Join(gone, ", "))
			}
			return nil
		},
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return completeClusters(), cobra.ShellCompDirectiveNoFileComp
		},
	}
	c.Flags().BoolVar(&all, "all", false, "every cluster that is down")
	return c
}

func forget(t target) error {
	if err := removeRemains(t); err != nil {
		return err
	}
	if err := os.RemoveAll(t.dir); err != nil {
		return errs.Wrap(errs.Permission, err, "cannot remove the record of cluster %s", t.name)
	}
	_ = os.Remove(filepath.Join(filepath.Dir(t.dir), "."+t.name+".lock"))
	return nil
}
