package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"launcher/backends/slurm"
	"launcher/internal/errs"
)

// allocation is the Slurm allocation that a command is in and means: no cluster is named,
// and it is not part of a run.
func (a *app) allocation() (slurm.Allocation, bool) {
	if a.cluster != "" || os.Getenv("LAUNCHER_CLUSTER") != "" || os.Getenv("LAUNCHER_SOCKET") != "" {
		return slurm.Allocation{}, false
	}
	return slurm.Inside()
}

const (
	// allocationWait is how long the nodes of an allocation may take to come.
	allocationWait = 3 * time.Minute
	// allocationGrace is how long they go on without the command that they are of.
	allocationGrace = 15 * time.Second
)

// launchInAllocation runs a job on all nodes of the allocation that we are in, as a
// private cluster that ends with it.
func (a *app) launchInAllocation(ctx context.Context, al slurm.Allocation, l launch) (err error) {
	if l.detach {
		return errs.New(errs.Invalid, "--detach in a batch script: the nodes of Slurm job %s are used for as long as the command runs", al.Job).
			Hint("leave --detach out, and let the shell start several with & and wait")
	}
	runtime.LockOSThread() // the head's supervisor ends with the thread that started it
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM)
	defer stop()
	h, err := home()
	if err != nil {
		return err
	}
	own, err := makePrivateHome(h)
	if err != nil {
		return err
	}
	defer func() {
		if rerr := os.RemoveAll(own); err == nil && rerr != nil {
			err = errs.Wrap(errs.Permission, rerr, "cannot remove %s", own)
		}
	}()
	cl, err := privateCluster("the allocation", own, fmt.Sprintf(
		"version = 1\nname = \"slurm-%s-%s\"\n[head]\ngrace = \"%s\"\n[[pool]]\nname = \"slurm\"\nbackend = \"slurm\"\nmin = %d\n",
		al.Job, filepath.Base(own), allocationGrace, al.Nodes))
	if err != nil {
		return err
	}
	quiet := newApp(a.in, io.Discard, io.Discard)
	d, err := quiet.prepare(ctx, own, cl, upOptions{})
	if err != nil {
		return err
	}
	defer d.unlock()
	d.tied = true
	t := d.target()
	t.up = true
	began := time.Now()
	if err = d.start(ctx); err == nil {
		if err = quiet.awaitPools(ctx, t, began, upOptions{wait: allocationWait}); err == nil {
			err = a.launchOn(ctx, t, l)
		}
	}
	if ctx.Err() != nil {
		err = exitWith(128+int(syscall.SIGTERM), errs.New(errs.Cancelled, "told to end by SIGTERM"))
	}
	down, cancel := context.WithTimeout(context.WithoutCancel(ctx), privateStop+downBound)
	defer cancel()
	if derr := quiet.takeDown(down, t, downOptions{grace: privateStop}); err == nil {
		err = derr
	}
	return err
}
