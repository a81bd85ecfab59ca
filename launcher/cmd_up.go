package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"launcher/broker"
	"launcher/configs"
	"launcher/internal/errs"
	"launcher/wire"
)

// upOptions are the flags of up that bringUp needs.
type upOptions struct {
	wait    time.Duration // 0 = defaultWait
	yes     bool
	replace bool
	head    bool // the head is all that is waited for
	once    bool // and only for the first try to reach it
	newKeys bool // of hosts never seen are taken
}

const defaultWait = 10 * time.Minute

const upLong = `Bring a cluster up from its TOML file. Returns 0 once the minimum of every pool is in and
every node has answered or failed; --wait bounds that (exit code 124: the cluster stays and
goes on trying). Ctrl-C only stops watching.

On a cluster that is up, the difference between the file and what runs is printed and
applied; what would remove nodes or stop work is asked about first (--yes). After a crash
the same command brings the cluster back from its journal, and its jobs go on.`

func (a *app) cmdUp() *cobra.Command {
	var o upOptions
	var wait, emit string
	var dryRun bool
	c := &cobra.Command{
		Use:   "up SPEC",
		Short: "bring a cluster up, or bring a running one in line with its file",
		Long:  upLong,
		Args:  argCount(1, 1),
		RunE: func(c *cobra.Command, args []string) error {
			switch {
			case emit != "":
				return a.emit(args[0], emit)
			case dryRun:
				return a.dryRun(args[0])
			}
			d, err := configs.ParseDuration(wait)
			if err != nil {
				return errs.Wrap(errs.Invalid, err, "--wait")
			}
			o.wait = max(d, time.Nanosecond)
			ctx, stop := detachOnInterrupt(c.Context())
			defer stop()
			t, started, err := a.bringUp(ctx, args[0], o)
			if err != nil {
				if ctx.Err() != nil && t.name != "" {
					a.note("launcher: detached; cluster %s goes on coming up", t.name)
					return &exitError{code: exitCancelled, side: sideLauncher}
				}
				return err
			}
			return a.printUp(c.Context(), t, started)
		},
	}
	f := c.Flags()
	f.StringVar(&wait, "wait", "10m", "give up watching after so long, exit code 124")
	f.BoolVar(&dryRun, "dry-run", false, "print exactly what each backend would be sent, and start nothing")
	f.StringVar(&emit, "emit", "", "write into `DIR` a script for plain sbatch (one job with a head of its own, which asks for the other pools) or sh (no Slurm pool has min), and start nothing")
	f.BoolVar(&o.newKeys, "accept-new-host-keys", false, "take the keys of ssh hosts that known_hosts does not have; changed ones are never taken")
	f.BoolVar(&o.yes, "yes", false, "do not ask before removing nodes or stopping work")
	f.BoolVar(&o.replace, "replace", false, "take the name over from another spec: its cluster is brought down and its record dropped")
	return c
}

func (a *app) printUp(ctx context.Context, t target, started bool) error {
	c, err := dial(ctx, t)
	if err != nil {
		return err
	}
	defer c.Close()
	var i wire.ClusterInfo
	if err := c.call(ctx, wire.MsgInfo, wire.InfoRequest{}, &i); err != nil {
		return err
	}
	if a.json {
		d := statusDoc(i, true)
		d["started"] = started
		a.printJSON(d)
		return nil
	}
	n := 0
	for _, p := range i.Pools {
		n += p.Up
	}
	if why := broker.HeadWhy(t.dir); why != "" {
		a.note("%s", why)
	}
	fmt.Fprintf(a.out, "cluster %s is up: %s, %s cores, %s\n", i.Name, plural(n, "node"), units(i.Total.CPU), wire.Bytes(i.Total.Memory))
	return nil
}

// bringUp makes the cluster of a spec run and waits for the minimum of its pools. It
// reports whether it was not up before. t is set as soon as there is a cluster.
func (a *app) bringUp(ctx context.Context, spec string, o upOptions) (t target, started bool, err error) {
	if o.wait == 0 {
		o.wait = defaultWait
	}
	cl, h, err := loadSpec(spec)
	if err != nil {
		return t, false, err
	}
	began := time.Now()
	for try := 1; ; try++ {
		t, started, err = a.ensureHead(ctx, h, cl, o)
		// A head that is just dying still takes connections: look again, it will be gone.
		if err == nil {
			if headAway(t.dir) {
				// It may have run on where it is, with the spec of then.
				there := o
				there.head = true
				if err = a.awaitPools(ctx, t, began, there); err == nil {
					err = a.update(ctx, t, cl, o)
				}
			}
			if err == nil {
				err = a.awaitPools(ctx, t, began, o)
			}
			if err == nil || try == 3 || !errors.Is(err, errWentDown) {
				return t, started, err
			}
			continue
		}
		if try == 3 || !errs.Is(err, errs.NotFound) && !errs.Is(err, errs.Unavailable) {
			return t, started, err
		}
	}
}

// errWentDown: the head was still ending the cluster, as it had been told before, and is
// done with that now. It can be started again.
var errWentDown = errs.New(errs.Unavailable, "the cluster went down: it had been told to before")

// ensureHead makes the cluster's head run with this spec: it starts one, or hands a
// running one the difference.
func (a *app) ensureHead(ctx context.Context, h string, cl *configs.Cluster, o upOptions) (t target, started bool, err error) {
	d, err := a.prepare(ctx, h, cl, o)
	if err != nil {
		return t, false, err
	}
	defer d.unlock()
	t = d.target()
	if t.up && headAway(t.dir) {
		return t, false, nil // that takes somebody who is there to be asked
	}
	if t.up {
		return t, false, a.update(ctx, t, cl, o)
	}
	t.up = true
	return t, true, d.start(ctx)
}

// update brings a running cluster in line with its file.
func (a *app) update(ctx context.Context, t target, cl *configs.Cluster, o upOptions) error {
	c, err := dial(ctx, t)
	if err != nil {
		return err
	}
	defer c.Close()
	req := wire.Update{SpecText: cl.Text, SpecPath: cl.Path, Pools: cl.WirePools()}
	var diff wire.UpdateAnswer
	if err := c.call(ctx, wire.MsgUpdate, req, &diff); err != nil {
		return err
	}
	if len(diff.Changes) == 0 {
		return nil
	}
	a.note("cluster %s is up; the file differs from what runs:", t.name)
	for _, l := range diff.Changes {
		a.note("  %s", l)
	}
	if len(diff.Removes) > 0 || diff.Stops > 0 {
		what := fmt.Sprintf("this removes %s and stops %s", plural(len(diff.Removes), "node"), plural(int(diff.Stops), "running task"))
		if err := a.confirm(ctx, what, o.yes); err != nil {
			return err
		}
	}
	req.Apply = true
	return c.call(ctx, wire.MsgUpdate, req, &diff)
}

// confirm asks before something is taken away. Without a terminal to ask on, --yes is needed.
func (a *app) confirm(ctx context.Context, what string, yes bool) error {
	if yes {
		return nil
	}
	if !a.inTTY || !a.tty || a.json {
		return errs.New(errs.Invalid, "%s", what).Hint("give --yes to do it")
	}
	a.screen.done()
	fmt.Fprintf(a.err, "%s. Go on? [y/N] ", what)
	line := make(chan string, 1)
	go func() { // ends with the process: a read from a terminal cannot be called off
		var s string
		_, _ = fmt.Fscanln(a.in, &s)
		line <- s
	}()
	select {
	case s := <-line:
		if s == "y" || s == "Y" || s == "yes" {
			return nil
		}
	case <-ctx.Done():
	}
	return exitWith(exitCancelled, errs.New(errs.Cancelled, "nothing was changed"))
}

// awaitPools shows a line per pool until each has its minimum and nothing is on its way.
// Meanwhile we are there to be asked.
func (a *app) awaitPools(ctx context.Context, t target, began time.Time, o upOptions) error {
	ctx, cancel := context.WithDeadline(ctx, began.Add(o.wait))
	told := map[string]string{}
	var c *client
	left := func() {}
	defer func() {
		cancel()
		if c != nil {
			c.Close()
		}
		left()
	}()
	for {
		var i wire.ClusterInfo
		var err error
		if c == nil {
			left()
			left = func() {}
			if c, err = dial(ctx, t); err == nil {
				if left, err = a.attend(ctx, c, o.newKeys); err != nil {
					left = func() {}
					c.Close()
					c = nil
				}
			}
		}
		if err == nil {
			if err = c.call(ctx, wire.MsgInfo, wire.InfoRequest{}, &i); err != nil {
				c.Close()
				c = nil
			}
		}
		switch {
		case err == nil:
			if o.head && i.HeadPID != 0 {
				return nil
			}
			if o.once && i.Trouble != "" {
				return errs.New(errs.Unavailable, "cluster %s: %s", t.name, i.Trouble)
			}
			done := !i.Recovering
			for _, p := range i.Pools {
				line := poolText(p)
				if told[p.Name] != line {
					told[p.Name] = line
					if a.tty || poolSettled(p) {
						a.note("%s", line)
					}
				}
				for _, f := range p.Failures {
					if line := failureText(f); told[string(f.Node)] != line {
						told[string(f.Node)] = line
						a.note("%s", line)
					}
				}
				done = done && (poolSettled(p) || poolHopeless(p))
			}
			if done {
				return poolsFailed(i)
			}
		case ctx.Err() == nil && wentDown(t.dir) && !answers(t.dir):
			return errWentDown
		case ctx.Err() == nil && !errs.Retryable(err) && !errs.Is(err, errs.NotFound):
			return err
		}
		select {
		case <-ctx.Done():
			if ctx.Err() != context.DeadlineExceeded {
				return ctx.Err()
			}
			e := errs.New(errs.Timeout, "cluster %s is not complete after %s", t.name, shortDuration(o.wait))
			for _, p := range i.Pools {
				if !poolSettled(p) {
					e = e.Hint("pool %s", poolText(p))
				}
			}
			return exitWith(exitTimeout, e.Hint("it goes on trying; `launcher status` shows how far it is, `launcher down %s` ends it", t.name))
		case <-time.After(pauseAfter(began)):
		}
	}
}

// poolSettled reports that a pool has its minimum and every node that was asked for has
// answered or failed.
func poolSettled(p wire.PoolInfo) bool { return p.Up >= p.Min && p.Pending == 0 }

// poolHopeless reports that a pool is refused its nodes, or that so many of its machines
// cannot come, whatever is tried again, that its minimum will not be met.
func poolHopeless(p wire.PoolInfo) bool {
	if p.Final && p.Up < p.Min && p.Pending == 0 {
		return true
	}
	final := 0
	for _, f := range p.Failures {
		if f.Final {
			final++
		}
	}
	return final > 0 && p.Pending == 0 && p.Wanted-final < p.Min
}

// poolsFailed names what failed although the minimum is in.
func poolsFailed(i wire.ClusterInfo) error {
	if k := slices.IndexFunc(i.Pools, func(p wire.PoolInfo) bool { return p.Up < p.Min }); k >= 0 {
		return errs.New(errs.Unavailable, "pool %s", poolText(i.Pools[k])).Hint("`launcher why %s` has the whole story", i.Pools[k].Name)
	}
	return nil
}
