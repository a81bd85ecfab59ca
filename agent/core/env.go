package core

import (
	"strings"

	"launcher/wire"
)

// order is everything that the shell needs to start a rank. Together with the shell's
// part (paths, PATH, the pool's environment) Env is the run contract of DESIGN 7.
func (c *Core) order(t *Try, i int) Spawn {
	spec := &t.job.spec.Spec
	s := Spawn{
		Proc: t.proc(i), Job: t.job.spec, Argv: argv(spec, t.Item), Dir: spec.Dir,
		Params: t.Item.Params, Checkpoint: t.Item.Checkpoint, CPUs: t.Ranks[i].Slot.CPUs, Memory: spec.Resources.Memory,
	}
	for _, g := range t.Ranks[i].Slot.GPUs {
		s.GPUs = append(s.GPUs, g.Device())
	}
	id := t.ID
	s.Env = []string{
		"LAUNCHER=" + c.cfg.Binary,
		"LAUNCHER_SOCKET=" + c.cfg.Socket,
		"LAUNCHER_CLUSTER=" + c.cfg.Cluster,
		"LAUNCHER_NODE=" + string(c.cfg.Hello.Node),
		"LAUNCHER_JOB_ID=" + utoa(int64(id.Job)),
		"LAUNCHER_TASK_ID=" + utoa(int64(id.Job)) + "." + utoa(int64(id.Index)),
		"LAUNCHER_TASK_INDEX=" + utoa(int64(id.Index)),
		"LAUNCHER_ATTEMPT=" + utoa(int64(id.Attempt)),
		"LAUNCHER_PROC=" + utoa(int64(id.Job)) + "." + utoa(int64(id.Index)) + "#" + utoa(int64(id.Attempt)) + "/" + utoa(int64(s.Proc.Rank)),
		"LAUNCHER_DEADLINE=" + utoa(c.deadline(t)/second),
	}
	if spec.Kind == wire.KindArray && (t.Item.Line != "" || eachLine(spec)) {
		s.Env = append(s.Env, "LAUNCHER_LINE="+t.Item.Line)
	}
	s.Soft = []string{
		"CUDA_VISIBLE_DEVICES=" + strings.Join(s.GPUs, ","),
		"OMP_NUM_THREADS=" + utoa(max(1, spec.Resources.CPU/wire.Unit)),
	}
	if g := t.Gang; g != nil {
		s.Env = append(s.Env, torchrun(spec, g, t, i, c.cfg.Hello.Node)...)
		s.Hostfile = hostfile(g)
	} else if spec.Kind == wire.KindTrain {
		alone := &wire.Start{Gang: id, World: 1, MasterAddr: "127.0.0.1", Nodes: []wire.GangNode{{Node: c.cfg.Hello.Node, Addr: "127.0.0.1", Count: 1}}}
		s.Env = append(s.Env, torchrun(spec, alone, t, i, c.cfg.Hello.Node)...)
		s.Hostfile = hostfile(alone)
	}
	return s
}

func eachLine(spec *wire.JobSpec) bool { return spec.Array != nil && len(spec.Array.Lines) > 0 }

// argv is the command of one try. In an array over lines, {} is the line.
func argv(spec *wire.JobSpec, it wire.Item) []string {
	cmd := spec.Command
	if it.Command != nil {
		cmd = it.Command
	}
	if spec.Kind != wire.KindArray || it.Line == "" && !eachLine(spec) {
		return cmd
	}
	out := make([]string, len(cmd))
	for i, a := range cmd {
		out[i] = strings.ReplaceAll(a, "{}", it.Line)
	}
	return out
}

// torchrun gives the variables that torchrun sets, all of them, so that whatever reads
// them (torch, Lightning, Accelerate, DeepSpeed) finds a running elastic launcher.
func torchrun(spec *wire.JobSpec, g *wire.Start, t *Try, i int, node wire.NodeID) []string {
	rank, local := utoa(int64(t.First)+int64(i)), utoa(int64(i))
	world, localWorld := utoa(int64(g.World)), utoa(int64(len(t.Ranks)))
	group := 0
	for k, n := range g.Nodes {
		if n.Node == node {
			group = k
		}
	}
	restarts := 0
	if spec.Train != nil {
		restarts = spec.Train.MaxRestarts
	}
	return []string{
		"RANK=" + rank, "LOCAL_RANK=" + local, "GROUP_RANK=" + utoa(int64(group)), "ROLE_RANK=" + rank, "ROLE_NAME=default",
		"WORLD_SIZE=" + world, "LOCAL_WORLD_SIZE=" + localWorld, "ROLE_WORLD_SIZE=" + world, "GROUP_WORLD_SIZE=" + utoa(int64(len(g.Nodes))),
		"MASTER_ADDR=" + g.MasterAddr, "MASTER_PORT=" + utoa(int64(g.MasterPort)),
		"TORCHELASTIC_RESTART_COUNT=" + utoa(int64(g.Restarts)), "TORCHELASTIC_MAX_RESTARTS=" + utoa(int64(restarts)),
		"TORCHELASTIC_RUN_ID=" + utoa(int64(t.ID.Job)), "TORCHELASTIC_USE_AGENT_STORE=False",
	}
}

// hostfile lists a gang's nodes as mpirun reads them.
func hostfile(g *wire.Start) []byte {
	var b strings.Builder
	for _, n := range g.Nodes {
		b.WriteString(host(n.Addr) + " slots=" + utoa(int64(n.Count)) + "\n")
	}
	return []byte(b.String())
}

// host is the address without its port.
func host(addr string) string {
	if h, _, ok := strings.Cut(addr, "]"); ok { // [::1]:80
		return strings.TrimPrefix(h, "[")
	}
	if strings.Count(addr, ":") == 1 {
		addr, _, _ = strings.Cut(addr, ":")
	}
	return addr
}
