package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"launcher/internal/errs"
	"launcher/internal/sockpath"
	"launcher/wire"
)

// A private cluster is one that an SDK starts when a program says init() and nothing is
// up. `launcher local` keeps it: it runs as long as the program holds its standard input
// open, and is gone without a trace afterwards. Its state lies in a home of its own below
// $LAUNCHER_HOME/local, where the commands find it, but no other program's init() does.

// localOptions are the flags of local.
type localOptions struct {
	cpus      float64
	gpus      float64
	resources []string // name=amount
	nodes     int
	objects   string
	python    string
}

// privateGrace is how long the agents of a private cluster go on without its head. The
// head ends with its keeper, so this bounds the cluster's life when the keeper is killed.
const privateGrace = 3 * time.Second

func (a *app) cmdLocal() *cobra.Command {
	var o localOptions
	c := &cobra.Command{
		Use:    "local",
		Short:  "a cluster of one program, for as long as standard input is open",
		Hidden: true,
		Long: `Start a cluster of its own on this machine for one program, as the SDKs' init() does when no
cluster is up. When its nodes are up it prints one line of JSON, {"version", "socket" (of
the first node's agent), "cluster", "home", "head"}, and waits. At the end of standard input, SIGTERM
or SIGINT it ends the cluster and drops its record. When it is killed the cluster ends too.`,
		Args: argCount(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(c.Context(), syscall.SIGTERM, os.Interrupt, syscall.SIGHUP)
			defer stop()
			return a.local(ctx, o)
		},
	}
	f := c.Flags()
	f.Float64Var(&o.cpus, "cpus", 0, "cores of each node (default: the machine's, shared among them)")
	f.Float64Var(&o.gpus, "gpus", -1, "GPUs of each node (default: the machine's)")
	f.StringArrayVar(&o.resources, "resource", nil, "a resource of each node by `NAME=AMOUNT`; may be given several times")
	f.IntVar(&o.nodes, "nodes", 1, "number of nodes")
	f.StringVar(&o.objects, "object-memory", "", `memory for objects on each node, such as "2GiB" or "30%", or bytes`)
	f.StringVar(&o.python, "python", "", "interpreter for tasks of programs in other languages")
	return c
}

// local is the keeper of a private cluster.
func (a *app) local(ctx context.Context, o localOptions) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // ends with the process: a read cannot be called off
		_, _ = io.Copy(io.Discard, a.in)
		cancel()
	}()
	p := private{from: "the flags of launcher local", wait: defaultWait}
	p.spec = func(own string) (string, error) { return o.spec(privateName(own)) }
	p.told = func(err error) error {
		if err != nil { // the program was gone before it was up
			return &exitError{code: exitCancelled, side: sideLauncher}
		}
		return nil
	}
	return a.inPrivate(ctx, p, func(d *stateDir, t target, own string) error {
		line, err := a.describeLocal(ctx, t, own)
		if err != nil {
			return err
		}
		a.printJSON(line)
		go dropStale(filepath.Dir(filepath.Dir(own)))
		select {
		case <-ctx.Done():
			return nil
		case <-d.ended:
			return errs.New(errs.Unavailable, "the local cluster %s ended%s", t.name, tail(filepath.Join(t.dir, "head.log"), 0))
		}
	})
}

// spec is the text of the private cluster's spec.
func (o localOptions) spec(name string) (string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "version = 1\nname = %q\n[head]\ngrace = %q\n", name, privateGrace)
	if o.objects != "" {
		if _, err := strconv.ParseUint(o.objects, 10, 63); err == nil {
			o.objects += "B"
		}
		fmt.Fprintf(&b, "[objects]\nmemory = %q\n", o.objects)
	}
	fmt.Fprintf(&b, "[[pool]]\nname = \"local\"\nbackend = \"local\"\nnodes = %d\n", o.nodes)
	if o.python != "" {
		fmt.Fprintf(&b, "python = %q\n", o.python)
	}
	if o.gpus > 0 { // said to be there and to be this program's, whoever else is on the machine
		b.WriteString("share = \"ignore\"\n")
	}
	var res []string
	if o.cpus < 0 {
		return "", errs.New(errs.Invalid, "--cpus %g: give more than 0", o.cpus)
	}
	if o.cpus > 0 {
		res = append(res, "cpu = "+strconv.FormatFloat(o.cpus, 'f', -1, 64))
	}
	if o.gpus >= 0 {
		res = append(res, "gpu = "+strconv.FormatFloat(o.gpus, 'f', -1, 64))
	}
	for _, r := range o.resources {
		name, amount, _ := strings.Cut(r, "=")
		if v, err := strconv.ParseFloat(amount, 64); err != nil || v < 0 || name == "" {
			return "", errs.New(errs.Invalid, "--resource %q: give NAME=AMOUNT", r)
		}
		res = append(res, strconv.Quote(name)+" = "+amount)
	}
	if len(res) > 0 {
		fmt.Fprintf(&b, "resources = { %s }\n", strings.Join(res, ", "))
	}
	return b.String(), nil
}

// describeLocal is the line that the program reads.
func (a *app) describeLocal(ctx context.Context, t target, own string) (doc, error) {
	c, err := dial(ctx, t)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	var i wire.ClusterInfo
	if err := c.call(ctx, wire.MsgInfo, wire.InfoRequest{}, &i); err != nil {
		return nil, err
	}
	if len(i.Nodes) == 0 {
		return nil, errs.New(errs.Unavailable, "the cluster %s is up without a node", t.name)
	}
	sock, err := sockpath.Find(filepath.Join(t.dir, "nodes", string(i.Nodes[0].ID), "agent.sock"))
	if err != nil {
		return nil, errs.Wrap(errs.NotFound, err, "the agent of node %s", i.Nodes[0].ID)
	}
	head, err := sockpath.Find(t.sock)
	if err != nil {
		return nil, errs.Wrap(errs.NotFound, err, "the head's socket")
	}
	return doc{"socket": sock, "cluster": t.name, "home": own, "head": head}, nil
}
