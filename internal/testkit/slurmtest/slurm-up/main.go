// Command slurm-up runs a Slurm for acceptance scripts: it prints a line to be sourced by
// a shell, export SLURM_CONF=..., and ends the cluster at the end of its standard input.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"launcher/internal/testkit/slurmtest"
)

func main() {
	var o slurmtest.Options
	flag.StringVar(&o.Dir, "dir", "", "directory of everything")
	flag.IntVar(&o.Nodes, "nodes", 2, "number of nodes")
	flag.IntVar(&o.CPUs, "cpus", 2, "cores of each node")
	flag.IntVar(&o.GPUs, "gpus", 0, "GPUs of each node, only device files")
	flag.Func("line", "a line of slurm.conf (repeatable)", func(s string) error { o.Lines = append(o.Lines, s); return nil })
	flag.Func("part", "a line for a partition (repeatable)", func(s string) error { o.Parts = append(o.Parts, s); return nil })
	flag.Func("account", "a line for sacctmgr, which makes it keep accounts (repeatable)", func(s string) error { o.Accounts = append(o.Accounts, s); return nil })
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	c, err := slurmtest.Start(ctx, o)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Printf("export SLURM_CONF=%s\n", c.Conf)
	go func() { // ends with the process: a read cannot be called off
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	<-ctx.Done()
	c.Stop()
}
