package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
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
func (a *app) launchInAllocation(ctx context.Context, al slurm.Allocation, l launch) error {
	if l.detach {
		return errs.New(errs.Invalid, "--detach in a batch script: the nodes of Slurm job %s are used for as long as the command runs", al.Job).
			Hint("leave --detach out, and let the shell start several with & and wait")
	}
	l.gone = true
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM)
	defer stop()
	p := private{from: "the allocation", wait: allocationWait}
	p.spec = func(own string) (string, error) {
		return fmt.Sprintf(
			"version = 1\nname = \"slurm-%s-%s\"\n[head]\ngrace = \"%s\"\n[[pool]]\nname = \"slurm\"\nbackend = \"slurm\"\nmin = %d\n",
			al.Job, filepath.Base(own), allocationGrace, al.Nodes), nil
	}
	p.told = func(error) error {
		return exitWith(128+int(syscall.SIGTERM), errs.New(errs.Cancelled, "told to end by SIGTERM"))
	}
	return a.inPrivate(ctx, p, func(_ *stateDir, t target, _ string) error {
		return a.launchOn(ctx, t, l)
	})
}
