package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"

	"github.com/BurntSushi/toml"

	"launcher/backends/slurm"
	"launcher/configs"
	"launcher/internal/errs"
)

// emit writes what sbatch needs to make a spec's cluster as a job by itself: a batch script
// and the cluster's spec as it is inside the job. There is no secret in them: the head that
// is started in the job makes its keys itself.
func (a *app) emit(spec, dir string) error {
	cl, _, err := loadSpec(spec)
	if err != nil {
		return err
	}
	if len(cl.Pools) != 1 || cl.Pools[0].Backend != slurm.Name {
		return errs.New(errs.Invalid, "--emit writes one Slurm job, and %s has other pools than one with backend = \"slurm\"", spec).
			Hint("give a spec with that pool only; `launcher up` brings all others up by itself")
	}
	n := cl.WirePools()[0].Min
	if n == 0 {
		return errs.New(errs.Invalid, "pool %s has min = 0, and a job has as many nodes as its script says", cl.Pools[0].Name).Hint("say min = N in the pool")
	}
	bin, err := executable()
	if err != nil {
		return err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return errs.Wrap(errs.Invalid, err, "--emit")
	}
	script, err := slurm.Emit(cl.Pools[0].Options, cl.Name, n, bin, dir)
	if err != nil {
		return err
	}
	inside, err := insideSpec(cl, n)
	if err != nil {
		return err
	}
	if _, err := configs.ParseCluster("what --emit writes", filepath.Join(dir, cl.Name+".toml"), inside); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(dir, "state"), 0o700); err != nil {
		return errs.Wrap(errs.Permission, err, "--emit")
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
	fmt.Fprintf(a.out, "sbatch %s CMD [ARG...]\n", path)
	return nil
}

// insideSpec is a spec of one Slurm pool for a head inside its job: what is asked of Slurm
// is said by the script.
func insideSpec(cl *configs.Cluster, n int) ([]byte, error) {
	var all map[string]any
	if _, err := toml.Decode(cl.Text, &all); err != nil {
		return nil, errs.Wrap(errs.Invalid, err, "%s", cl.Path)
	}
	var pool map[string]any
	switch list := all["pool"].(type) {
	case []map[string]any:
		pool = list[0]
	case []any:
		pool, _ = list[0].(map[string]any)
	}
	pool = maps.Clone(pool)
	if pool == nil {
		return nil, errs.New(errs.Internal, "%s: no pool", cl.Path)
	}
	for key := range cl.Pools[0].Options {
		delete(pool, key)
	}
	for _, key := range []string{"idle", "total", "until", "max_jobs"} { // of a chain of jobs
		delete(pool, key)
	}
	pool["min"], pool["max"] = n, n
	for key, v := range map[string]string{"container": cl.Pools[0].Container, "python": cl.Pools[0].Python} {
		if pool[key] != nil {
			pool[key] = v // no longer relative to the user's file
		}
	}
	all["pool"] = []map[string]any{pool}
	if head, ok := all["head"].(map[string]any); ok {
		delete(head, "where")
	}
	text, err := toml.Marshal(all)
	if err != nil {
		return nil, errs.Wrap(errs.Internal, err, "%s", cl.Path)
	}
	return append(fmt.Appendf(nil, "# %s, as it is inside the job that %s.sh is; written by launcher up --emit.\n", cl.Path, cl.Name), text...), nil
}
