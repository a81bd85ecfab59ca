package main

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"launcher/broker"
	"launcher/internal/errs"
	"launcher/internal/sockpath"
	"launcher/wire"
)

// target is the cluster a command talks to.
type target struct {
	name   string
	dir    string // its state directory; "" inside a run
	sock   string // the head's socket, or the agent's inside a run, which relays
	inside bool
	up     bool // something answers at sock, or the cluster is asleep
}

// clusterDir is one cluster directory under $LAUNCHER_HOME.
type clusterDir struct {
	name    string
	dir     string
	up      bool
	private bool // of one program, for its life: see cmd_local.go
}

// records lists the clusters that have a state directory, by name, private ones last.
func records() ([]clusterDir, error) {
	h, err := home()
	if err != nil {
		return nil, err
	}
	out, err := recordsBelow(h, false)
	if err != nil {
		return nil, err
	}
	homes, _ := filepath.Glob(filepath.Join(privateHomes(h), "*"))
	for _, p := range homes {
		more, err := recordsBelow(p, true)
		if err == nil { // else it is just going
			out = append(out, more...)
		}
	}
	return out, nil
}

func recordsBelow(h string, private bool) ([]clusterDir, error) {
	ents, err := os.ReadDir(filepath.Join(h, "clusters"))
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, errs.Wrap(errs.Permission, err, "cannot read the state directory").Hint("$LAUNCHER_HOME is %s; set it to a directory of yours", h)
	}
	var out []clusterDir
	for _, e := range ents {
		dir := filepath.Join(h, "clusters", e.Name())
		if !e.IsDir() || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		out = append(out, clusterDir{e.Name(), dir, answers(dir) || asleep(dir), private})
	}
	return out, nil
}

// answers reports whether a head listens for this state directory: here, or on another
// machine that sees the directory too.
func answers(dir string) bool {
	if sockpath.Answers(filepath.Join(dir, "head.sock")) {
		return true
	}
	f, err := broker.ReadClusterFile(dir)
	if err != nil {
		return false
	}
	if host, err := os.Hostname(); err != nil || host == f.Host {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	var d net.Dialer
	for _, addr := range f.Addrs {
		if c, err := d.DialContext(ctx, "tcp", addr); err == nil {
			_ = c.Close()
			return true
		}
	}
	return false
}

// asleep reports that a cluster goes on on its hosts while the front here, which stands in
// for its head, is gone: this machine was started anew, say.
func asleep(dir string) bool {
	return broker.HeadPlace(dir) != "" && crashed(dir)
}

// awake sees to it that the head of a cluster can be asked, where that is on a host: it
// starts the front here if that is gone, and waits for the head, or for what is wrong with
// the way to it. Meanwhile we are there to be asked.
func (a *app) awake(ctx context.Context, t target) error {
	if t.inside || !t.up || !headAway(t.dir) {
		return nil
	}
	for end := time.Now().Add(endingBound); ; {
		if asleep(t.dir) {
			if err := a.startAgain(ctx, t); err != nil {
				return err
			}
			break
		}
		var i wire.ClusterInfo
		c, err := dial(ctx, t)
		if err == nil {
			err = c.call(ctx, wire.MsgInfo, wire.InfoRequest{}, &i)
			c.Close()
		}
		switch {
		case err == nil && i.HeadPID != 0:
			return nil
		case err != nil && (ctx.Err() != nil || time.Now().After(end)):
			return nil // whoever needs it tries again, or not
		case err != nil: // one that is just ending takes connections for a moment
			time.Sleep(20 * time.Millisecond)
			continue
		}
		break
	}
	return a.awaitPools(ctx, t, time.Now(), upOptions{wait: awakeBound, head: true, once: true})
}

// endingBound is how long a front that was killed may seem to be there.
const endingBound = 2 * time.Second

// awakeBound is how long a command waits for the head of a cluster that was asleep; there
// may be questions to answer.
const awakeBound = 2 * time.Minute

// named is the cluster that the user names by -c, $LAUNCHER_CLUSTER or an argument.
func named(name string) (target, error) {
	recs, err := records()
	if err != nil {
		return target{}, err
	}
	i := slices.IndexFunc(recs, func(r clusterDir) bool { return r.name == name })
	if i < 0 {
		e := errs.New(errs.NotFound, "there is no cluster %q", name)
		if len(recs) > 0 {
			return target{}, e.Hint("there are: %s", strings.Join(recordNames(recs), ", "))
		}
		return target{}, e.Hint("`launcher up SPEC` brings one up")
	}
	r := recs[i]
	return target{name: r.name, dir: r.dir, sock: filepath.Join(r.dir, "head.sock"), up: r.up}, nil
}

// pick decides which cluster a command means: -c; inside a run its own; then
// $LAUNCHER_CLUSTER; then the only one up that is no program's own, or the only program's
// own. With orRecord a cluster that is down will do,
// for commands that can read its record.
func (a *app) pick(orRecord bool) (target, error) {
	sock, own := os.Getenv("LAUNCHER_SOCKET"), os.Getenv("LAUNCHER_CLUSTER")
	switch {
	case sock != "" && (a.cluster == "" || a.cluster == own):
		return target{name: own, sock: sock, inside: true, up: true}, nil
	case a.cluster != "":
		return named(a.cluster)
	case own != "":
		t, err := named(own)
		if err != nil {
			return t, errs.Wrap(errs.Unknown, err, "$LAUNCHER_CLUSTER")
		}
		return t, nil
	}
	recs, err := records()
	if err != nil {
		return target{}, err
	}
	up := slices.DeleteFunc(slices.Clone(recs), func(r clusterDir) bool { return !r.up })
	if shared := slices.DeleteFunc(slices.Clone(up), func(r clusterDir) bool { return r.private }); len(shared) > 0 {
		up = shared
	}
	switch {
	case len(up) == 1:
		return named(up[0].name)
	case len(up) > 1:
		return target{}, errs.New(errs.Invalid, "several clusters are up: %s", strings.Join(recordNames(up), ", ")).
			Hint("name one: -c %s, or set LAUNCHER_CLUSTER", up[0].name)
	case orRecord && len(recs) == 1:
		return named(recs[0].name)
	case orRecord && len(recs) > 1:
		return target{}, errs.New(errs.Invalid, "no cluster is up, and there are several records: %s", strings.Join(recordNames(recs), ", ")).
			Hint("name one: -c %s", recs[0].name)
	}
	return target{}, noneUp(recs)
}

func noneUp(recs []clusterDir) error {
	e := errs.New(errs.NotFound, "no cluster is up")
	if len(recs) > 0 {
		spec := "SPEC"
		if hc, err := readHeadConfig(recs[0].dir); err == nil && len(recs) == 1 {
			spec = shellJoin(hc.SpecPath)
		}
		return e.Hint("`launcher up %s` brings %s back", spec, strings.Join(recordNames(recs), " or ")).
			Hint("or do both at once: launcher run --on SPEC -- CMD...")
	}
	return e.Hint("`launcher up SPEC` brings one up; a spec can be as short as configs/local.toml").
		Hint("or do both at once: launcher run --on SPEC -- CMD...")
}

func recordNames(recs []clusterDir) []string {
	out := make([]string, len(recs))
	for i, r := range recs {
		out[i] = r.name
	}
	return out
}

// readHeadConfig reads clusters/NAME/head.config.
func readHeadConfig(dir string) (wire.HeadConfig, error) {
	var hc wire.HeadConfig
	b, err := os.ReadFile(filepath.Join(dir, "head.config"))
	if err != nil {
		return hc, errs.Wrap(errs.NotFound, err, "the cluster's configuration")
	}
	return hc, wire.Unmarshal(b, &hc)
}

// completeClusters is shell completion of cluster names.
func completeClusters() []string {
	recs, err := records()
	if err != nil {
		return nil
	}
	return recordNames(recs)
}
