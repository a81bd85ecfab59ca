package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"launcher/configs"
	"launcher/internal/errs"
	"launcher/internal/sockpath"
	"launcher/wire"
)

// A private cluster is one that an SDK starts when a program says init() and nothing is
// up. `launcher local` keeps it: it runs as long as the program holds its standard input
// open, and is gone without a trace afterwards. Its state lies in a home of its own below
// $LAUNCHER_HOME/local, where the commands find it, but no other program's init() does.

// privateHomes is where the homes of private clusters are.
func privateHomes(h string) string { return filepath.Join(h, "local") }

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

// privateStop is how long work has between SIGTERM and SIGKILL when its program is gone.
const privateStop = time.Second

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
func (a *app) local(ctx context.Context, o localOptions) (err error) {
	runtime.LockOSThread() // the head's supervisor ends with the thread that started it
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
	name := "local-" + filepath.Base(own)
	text, err := o.spec(name)
	if err != nil {
		return err
	}
	cl, err := privateCluster("the flags of launcher local", own, text)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // ends with the process: a read cannot be called off
		_, _ = io.Copy(io.Discard, a.in)
		cancel()
	}()
	quiet := newApp(a.in, io.Discard, io.Discard)
	d, err := quiet.prepare(ctx, own, cl, upOptions{})
	if err != nil {
		return err
	}
	defer d.unlock()
	d.tied = true
	t := d.target()
	t.up = true
	ended := func(err error) error {
		if ctx.Err() != nil && err != nil {
			err = &exitError{code: exitCancelled, side: sideLauncher} // the program was gone before it was up
		}
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), privateStop+downBound)
		defer cancel()
		if derr := quiet.takeDown(stop, t, downOptions{grace: privateStop}); err == nil {
			err = derr
		}
		return err
	}
	began := time.Now()
	if err := d.start(ctx); err != nil {
		return ended(err)
	}
	if err := quiet.awaitPools(ctx, t, began, upOptions{wait: defaultWait}); err != nil {
		return ended(err)
	}
	line, err := a.describeLocal(ctx, t, own)
	if err != nil {
		return ended(err)
	}
	a.printJSON(line)
	go dropStale(h)
	select {
	case <-ctx.Done():
	case <-d.ended:
		return ended(errs.New(errs.Unavailable, "the local cluster %s ended%s", name, tail(filepath.Join(t.dir, "head.log"), 0)))
	}
	return ended(nil)
}

// makePrivateHome makes a home for this process: its number, and another if an earlier
// process, or one of another machine with the same home, left that one.
func makePrivateHome(h string) (string, error) {
	for try := 0; ; try++ {
		name := strconv.Itoa(os.Getpid())
		if try > 0 {
			name += "-" + strconv.Itoa(try)
		}
		own := filepath.Join(privateHomes(h), name)
		err := os.MkdirAll(filepath.Dir(own), 0o700)
		if err == nil {
			err = os.Mkdir(own, 0o700)
		}
		switch {
		case err == nil:
			// The SDK and what is compiled of it are shared with all of this user's clusters.
			if err := os.MkdirAll(filepath.Join(h, "cache"), 0o700); err != nil {
				return "", stateError(h, err)
			}
			if err := os.Symlink(filepath.Join(h, "cache"), filepath.Join(own, "cache")); err != nil {
				return "", stateError(h, err)
			}
			return own, nil
		case !os.IsExist(err) || try == 1000:
			return "", stateError(h, err)
		}
	}
}

// privateCluster reads and checks the spec of a private cluster whose home is own.
func privateCluster(from, own, text string) (*configs.Cluster, error) {
	cl, err := configs.ParseCluster(from, filepath.Join(own, "cluster.toml"), []byte(text))
	if err != nil {
		return nil, err
	}
	return cl, checkBackends(cl, own)
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

// dropStale removes what the killed keepers of private clusters left, once nothing of
// those clusters runs.
func dropStale(h string) {
	homes, _ := filepath.Glob(filepath.Join(privateHomes(h), "*"))
	for _, own := range homes {
		recs, err := recordsBelow(own, true)
		if err != nil || len(recs) == 0 {
			continue // one that is being made
		}
		t := target{name: recs[0].name, dir: recs[0].dir, sock: filepath.Join(recs[0].dir, "head.sock")}
		if recs[0].up || !crashed(t.dir) && !wentDown(t.dir) || len(nodeProcesses(t)) > 0 {
			continue
		}
		if removeRemains(t) == nil {
			_ = os.RemoveAll(own)
		}
	}
}
