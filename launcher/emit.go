package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"github.com/BurntSushi/toml"

	"launcher/backends/slurm"
	"launcher/configs"
	"launcher/internal/errs"
)

// emit writes scripts that make a spec's cluster with the binary and nothing else: a batch
// script, for the pool in whose job the head is, or one for sh where there is no such pool;
// and the spec as it is there. The other pools are asked for by that head. There is no secret
// in them: the head makes its keys itself.
func (a *app) emit(spec, dir string) error {
	cl, _, err := loadSpec(spec)
	if err != nil {
		return err
	}
	at, err := headPool(cl)
	if err != nil {
		return err
	}
	bin, err := executable()
	if err != nil {
		return err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return errs.Wrap(errs.Invalid, err, "--emit")
	}
	own := at >= 0 && cl.Pools[at].Options["shared_home"] == false // nodes see dir alone
	from := bin
	if own {
		bin = filepath.Join(dir, "launcher")
	}
	script, run, n := shScript(cl.Name, bin, dir), "sh", 0
	if at >= 0 {
		run, n = "sbatch", cl.WirePools()[at].Min
		if script, err = slurm.Emit(cl.Pools[at].Options, cl.Name, n, bin, dir); err != nil {
			return err
		}
	}
	inside, err := insideSpec(cl, at, n)
	if err != nil {
		return err
	}
	if _, err := configs.ParseCluster("what --emit writes", filepath.Join(dir, cl.Name+".toml"), inside); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(dir, "state"), 0o700); err != nil {
		return errs.Wrap(errs.Permission, err, "--emit")
	}
	if own {
		if err := copyWhole(from, bin); err != nil {
			return errs.Wrap(errs.Permission, err, "--emit")
		}
	}
	path := filepath.Join(dir, cl.Name+".sh")
	for file, text := range map[string][]byte{path: []byte(script), filepath.Join(dir, cl.Name+".toml"): inside} {
		if err := writeWhole(file, text); err != nil {
			return errs.Wrap(errs.Permission, err, "--emit")
		}
	}
	if err := os.Chmod(path, 0o700); err != nil {
		return errs.Wrap(errs.Permission, err, "--emit")
	}
	if a.json {
		a.printJSON(doc{"cluster": cl.Name, "script": path, "nodes": n})
		return nil
	}
	fmt.Fprintf(a.out, "%s %s CMD [ARG...]\n", run, shellJoin(path))
	return nil
}

// copyWhole copies a program, by rename: one of that name may be running.
func copyWhole(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o700)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err2 := out.Close(); err == nil {
		err = err2
	}
	if err == nil {
		err = os.Rename(to+".new", to)
	}
	if err != nil {
		_ = os.Remove(to + ".new")
	}
	return err
}

// headPool is the pool whose job has the head; -1 = the head is where the script is run.
func headPool(cl *configs.Cluster) (int, error) {
	at, jobs, named := -1, 0, ""
	if name, ok := strings.CutPrefix(cl.Where, "pool:"); ok {
		named = name
	}
	for i, p := range cl.WirePools() {
		if p.Backend != slurm.Name {
			continue
		}
		if jobs++; p.Min > 0 && (named == p.Name || at < 0 && named == "") {
			at = i
		}
	}
	if at < 0 && jobs == len(cl.Pools) {
		return at, errs.New(errs.Invalid, "pool %s has min = 0, and a job has as many nodes as its script says", cmp.Or(named, cl.Pools[0].Name)).Hint("say min = N in the pool")
	}
	for i, p := range cl.Pools {
		if part, _ := p.Options["partition"].(string); at >= 0 && i != at && p.Backend == slurm.Name && part == "" {
			return at, errs.New(errs.Invalid, "pool %s names no partition: asked for from inside the job of pool %s, it would mean that job's own nodes", p.Name, cl.Pools[at].Name).
				Hint("say partition = \"...\" in the pool")
		}
	}
	return at, nil
}

// shScript brings a cluster up on the machine where it is run.
func shScript(name, bin, dir string) string {
	return fmt.Sprintf(`#!/bin/sh
# Cluster %[1]s, with its head on the machine where this is run.
#
#   sh %[1]s.sh [FLAG... --] CMD [ARG...]   runs CMD as "launcher run" does, ends the cluster, and has its exit code
#   sh %[1]s.sh                             brings the cluster up and says how to use and to end it

launcher=%[2]s
dir=%[3]s
export LAUNCHER_HOME="$dir/state"
unset LAUNCHER_CLUSTER LAUNCHER_SOCKET
if [ $# -gt 0 ]; then
	exec "$launcher" run --on "$dir/%[1]s.toml" "$@"
fi
"$launcher" up "$dir/%[1]s.toml" || exit
echo "use it with: LAUNCHER_HOME='$LAUNCHER_HOME' '$launcher' --cluster %[1]s run CMD"
echo "end it with: LAUNCHER_HOME='$LAUNCHER_HOME' '$launcher' down %[1]s"
`, name, shellJoin(bin), shellJoin(dir))
}

// insideSpec is the spec for such a head. Of the pool that its job is of, what is asked of
// Slurm is said by the script.
func insideSpec(cl *configs.Cluster, at, n int) ([]byte, error) {
	var all map[string]any
	if _, err := toml.Decode(cl.Text, &all); err != nil {
		return nil, errs.Wrap(errs.Invalid, err, "%s", cl.Path)
	}
	var pools []map[string]any
	switch list := all["pool"].(type) {
	case []map[string]any:
		pools = list
	case []any:
		for _, p := range list {
			m, _ := p.(map[string]any)
			pools = append(pools, m)
		}
	}
	if len(pools) != len(cl.Pools) {
		return nil, errs.New(errs.Internal, "%s: %d pools of %d", cl.Path, len(pools), len(cl.Pools))
	}
	for i, p := range cl.Pools {
		pool := maps.Clone(pools[i])
		pools[i] = pool
		for key, v := range map[string]any{"container": p.Container, "python": p.Python, "identity": p.Options["identity"],
			"known_hosts": p.Options["known_hosts"], "ssh_config": p.Options["ssh_config"]} {
			if pool[key] != nil {
				pool[key] = v // no longer relative to the user's file
			}
		}
		if i != at {
			continue
		}
		for key := range p.Options {
			delete(pool, key)
		}
		for _, key := range []string{"idle", "total", "until", "max_jobs"} { // of a chain of jobs
			delete(pool, key)
		}
		pool["min"], pool["max"] = n, n
	}
	all["pool"], all["name"] = pools, cl.Name
	if head, ok := all["head"].(map[string]any); ok && at >= 0 {
		delete(head, "where")
	}
	text, err := toml.Marshal(all)
	if err != nil {
		return nil, errs.Wrap(errs.Internal, err, "%s", cl.Path)
	}
	return append(fmt.Appendf(nil, "# %s, as it is for %s.sh; written by launcher up --emit.\n", cl.Path, cl.Name), text...), nil
}
