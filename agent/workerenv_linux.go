package agent

import (
	"context"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"launcher/wire"
)

// ofWorkers gives the environment that all workers of a job with the same options share:
// that of the job's processes, with what tells the worker where it is. job is nil for a
// program that no job started; in look are the directories that it looks for modules in.
func (e *environment) ofWorkers(ctx context.Context, job *wire.Job, name string, look []string, vars map[string]string) ([]string, error) {
	if job == nil {
		job = &e.a.anyone
	}
	j, err := e.job(ctx, job)
	if err != nil {
		return nil, err
	}
	set := map[string]string{}
	for _, kv := range j.vars {
		k, v, _ := strings.Cut(kv, "=")
		set[k] = v
	}
	// The options of a task stand above the job's environment, our own names above all.
	maps.Copy(set, vars)
	path := []string{}
	for _, dir := range append(slices.Clone(look), filepath.SplitList(set["PYTHONPATH"])...) {
		if dir != "" && !slices.Contains(path, dir) {
			path = append(path, dir)
		}
	}
	if sdk := e.sdkPath(set[asRayVar]); len(sdk) > 0 { // first, whatever a directory of the program's has under that name
		path = append(sdk, slices.DeleteFunc(path, func(d string) bool { return slices.Contains(sdk, d) })...)
	}
	if len(path) > 0 {
		set["PYTHONPATH"] = strings.Join(path, ":")
	}
	set["LAUNCHER"], set["LAUNCHER_SOCKET"] = e.a.o.Binary, e.a.local.path
	set["LAUNCHER_CLUSTER"], set["LAUNCHER_NODE"] = e.a.cfg.Cluster, string(e.a.cfg.Node)
	set["LAUNCHER_JOB_ID"] = name
	delete(set, "LAUNCHER_PROC") // that of its template comes
	out := make([]string, 0, len(set))
	for _, k := range slices.Sorted(maps.Keys(set)) {
		out = append(out, k+"="+set[k])
	}
	return out, nil
}

// anyoneOf is the job of programs that no job started: the node's environment as its pool
// has it.
func anyoneOf(c wire.NodeConfig) wire.Job {
	return wire.Job{Setup: c.Setup, PoolEnv: c.Env, Python: c.Python}
}
