package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"launcher/internal/errs"
	"launcher/wire"
)

// The commands of this file only look: they print tables of what the head knows, or of
// the record of a cluster that is down.

func (a *app) cmdStatus() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "the cluster in short",
		Args:  argCount(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			src, err := a.source(c.Context())
			if err != nil {
				return err
			}
			defer src.Close()
			info, err := src.info(c.Context())
			if err != nil {
				return err
			}
			if a.json {
				a.printJSON(statusDoc(info, src.up()))
				return nil
			}
			a.printStatus(info, src.up())
			return nil
		},
	}
}

func statusDoc(i wire.ClusterInfo, up bool) doc {
	state := "down"
	if up {
		state = "up"
		if i.Recovering {
			state = "recovering"
		}
	}
	jobs := i.Jobs
	if jobs == nil {
		jobs = map[string]int{}
	}
	return doc{
		"cluster": doc{"name": i.Name, "spec": i.SpecPath, "state": state, "version": i.Version, "started": stamp(i.Started), "trouble": i.Trouble, "broker": i.Broker,
			"head":  doc{"pid": i.HeadPID, "host": i.HeadHost, "epoch": i.HeadEpoch, "node": i.HeadNode, "moves": i.HeadMoves, "moved": stamp(i.HeadMoved), "why": i.HeadWhy},
			"total": toJSONResources(i.Total), "free": toJSONResources(i.Free)},
		"followers": mapAll(i.Followers, func(f wire.FollowerInfo) doc {
			return doc{"node": f.Node, "behind": f.Behind, "late": f.Late, "why": f.Why, "trees": f.Trees}
		}),
		"pools": mapAll(i.Pools, toJSONPool), "nodes": mapAll(i.Nodes, toJSONNode), "jobs": jobs, "uses": mapAll(i.Uses, toJSONUse),
	}
}

// maxUses bounds the jobs whose use status shows.
const maxUses = 20

func (a *app) printStatus(i wire.ClusterInfo, up bool) {
	w := a.out
	if !up {
		fmt.Fprintf(w, "cluster   %s, down\nspec      %s\n", i.Name, i.SpecPath)
		fmt.Fprintf(w, "jobs      %s\n", countsText(i.Jobs))
		a.note("hint: `launcher up %s` brings it back; `launcher forget %s` drops its record", shellJoin(i.SpecPath), i.Name)
		return
	}
	state := "up " + since(i.Started)
	if i.Recovering {
		state += ", the head has restarted and waits for its agents"
	}
	fmt.Fprintf(w, "cluster   %s, %s\nspec      %s\n", i.Name, state, i.SpecPath)
	fmt.Fprintf(w, "head      %s, pid %d, version %s\n", i.HeadHost, i.HeadPID, i.Version)
	if line := movesText(i); line != "" {
		fmt.Fprintf(w, "          %s\n", line)
	}
	for n, p := range i.Pools {
		label := "pools"
		if n > 0 {
			label = ""
		}
		fmt.Fprintf(w, "%-9s %s\n", label, poolText(p))
		for _, f := range p.Failures {
			fmt.Fprintf(w, "          %s\n", failureText(f))
		}
	}
	fmt.Fprintf(w, "in use    %s\n", useText(i.Free, i.Total))
	fmt.Fprintf(w, "jobs      %s\n", countsText(i.Jobs))
	for _, u := range i.Uses[:min(len(i.Uses), maxUses)] {
		fmt.Fprintf(w, "          %s uses %s\n", wire.JobName(u.Job), u.Tasks.Add(u.Own, 1))
	}
	if n := len(i.Uses) - maxUses; n > 0 {
		fmt.Fprintf(w, "          and %d more\n", n)
	}
	if len(i.Followers) > 0 {
		fmt.Fprintf(w, "journal   %s\n", followersText(i.Followers))
	}
	for _, t := range []string{i.Trouble, i.Broker} {
		if t != "" {
			fmt.Fprintf(w, "trouble   %s\n", t)
		}
	}
	for _, n := range i.Nodes {
		if n.State == "up" && n.Why != "" { // output that cannot be written there
			fmt.Fprintf(w, "trouble   %s: %s\n", n.ID, n.Why)
		}
		if n.Taken != "" {
			fmt.Fprintf(w, "others    %s: %s\n", n.ID, n.Taken)
		}
	}
}

// movesText says where a head that moves is, and why.
func movesText(i wire.ClusterInfo) string {
	if i.HeadMoves == 0 {
		return i.HeadWhy
	}
	at := "at home"
	if i.HeadNode != "" {
		at = "on node " + string(i.HeadNode)
	}
	return fmt.Sprintf("%s since %s ago, after %s: %s", at, since(i.HeadMoved), plural(i.HeadMoves, "move"), i.HeadWhy)
}

// followersText says who keeps a copy of the head's journal, and how far behind it is.
func followersText(fs []wire.FollowerInfo) string {
	var out, late, failed []string
	for _, f := range fs {
		s := string(f.Node)
		if f.Late {
			late = append(late, s)
			continue
		}
		if f.Why != "" {
			failed = append(failed, s+": "+f.Why)
			continue
		}
		if f.Trees != "" {
			failed = append(failed, s+", without the directories of jobs: "+f.Trees)
		}
		if f.Behind > 0 {
			s += fmt.Sprintf(" (%s behind)", plural(int(f.Behind), "record"))
		}
		out = append(out, s)
	}
	s := "copied to " + cmp.Or(strings.Join(out, ", "), "no other machine")
	if len(late) > 0 {
		s += "; too slow to have a copy: " + strings.Join(late, ", ")
	}
	return strings.Join(append([]string{s}, failed...), "; ")
}

// failureText says why a machine of a pool is not there.
func failureText(f wire.NodeFailure) string {
	host := f.Place[strings.LastIndexByte(f.Place, '@')+1:]
	why := strings.TrimPrefix(f.Why, f.Place+": ")
	if k := strings.Index(why, ": "); k > 0 && strings.HasPrefix(host, why[:k]) { // it names itself
		why = why[k+2:]
	}
	return fmt.Sprintf("%s (%s): %s", f.Place, f.Node, why)
}

func poolText(p wire.PoolInfo) string {
	s := fmt.Sprintf("%s (%s): %d of %s up", p.Name, p.Backend, p.Up, plural(max(p.Wanted, p.Min), "node"))
	if p.Pending > 0 {
		s += fmt.Sprintf(", %d coming", p.Pending)
	}
	if p.Failed > 0 {
		s += fmt.Sprintf(", %d failed", p.Failed)
	}
	if p.Why != "" {
		s += ": " + p.Why
	}
	return s
}

func useText(free, total wire.Resources) string {
	s := share(free.CPU, total.CPU) + " cores"
	if total.GPU > 0 {
		s += ", " + share(free.GPU, total.GPU) + " GPUs"
	}
	s += ", " + wire.Bytes(total.Memory-free.Memory) + " of " + wire.Bytes(total.Memory)
	for _, k := range slices.Sorted(maps.Keys(total.Custom)) {
		s += ", " + share(free.Custom[k], total.Custom[k]) + " " + k
	}
	return s
}

func countsText(m map[string]int) string {
	var parts []string
	for _, s := range []wire.State{wire.StateWaiting, wire.StateRunning, wire.StateStopping, wire.StateDone, wire.StateFailed, wire.StateCancelled, wire.StateLost} {
		if n := m[s.String()]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, s))
		}
	}
	if len(parts) == 0 {
		return "none"
	}
	return strings.Join(parts, ", ")
}

func (a *app) cmdNodes() *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:   "nodes",
		Short: "the cluster's nodes",
		Args:  argCount(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			nodes, err := request[[]wire.NodeInfo](c.Context(), a, wire.MsgNodes, wire.NodesRequest{})
			if err != nil {
				return err
			}
			if !all {
				nodes = slices.DeleteFunc(nodes, func(n wire.NodeInfo) bool { return n.State == "gone" })
			}
			if a.json {
				a.printJSON(doc{"nodes": mapAll(nodes, toJSONNode)})
				return nil
			}
			a.table(nodeRows(nodes))
			return nil
		},
	}
	c.Flags().BoolVar(&all, "all", false, "nodes that are gone, too")
	return c
}

func nodeRows(nodes []wire.NodeInfo) [][]string {
	rows := [][]string{{"NODE", "STATE", "HOST", "CORES", "GPUS", "MEMORY", "RUNNING", "QUEUED", "LOAD", "CLOCK", "ROUTE", "RATE", "UP", "WHY"}}
	for _, n := range nodes {
		rows = append(rows, []string{string(n.ID), n.State, n.Host, share(n.Free.CPU, n.Total.CPU), share(n.Free.GPU, n.Total.GPU),
			wire.Bytes(n.Total.Memory-n.Free.Memory) + "/" + wire.Bytes(n.Total.Memory), fmt.Sprint(n.Running), fmt.Sprint(n.Queued),
			fmt.Sprintf("%.2f", n.Load1), clockText(n.Clock), n.Route, wire.Bytes(n.Rate) + "/s", since(n.Since), cmp.Or(n.Why, n.Taken)})
	}
	if slices.ContainsFunc(nodes, func(n wire.NodeInfo) bool { return n.Topology.Known() }) {
		rows[0] = slices.Insert(rows[0], 5, "TOPOLOGY")
		for i, n := range nodes {
			rows[i+1] = slices.Insert(rows[i+1], 5, n.Topology.String())
		}
	}
	return rows
}

// clockText shows how far a node's clock is off, when it is worth showing.
func clockText(ns int64) string {
	d := time.Duration(ns)
	if d.Abs() < 10*time.Millisecond {
		return "ok"
	}
	return fmt.Sprintf("%+.2fs", d.Seconds())
}

func (a *app) cmdPools() *cobra.Command {
	return &cobra.Command{
		Use:   "pools",
		Short: "the cluster's pools",
		Args:  argCount(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			pools, err := request[[]wire.PoolInfo](c.Context(), a, wire.MsgPools, wire.PoolsRequest{})
			if err != nil {
				return err
			}
			if a.json {
				a.printJSON(doc{"pools": mapAll(pools, toJSONPool)})
				return nil
			}
			rows := [][]string{{"POOL", "BACKEND", "MIN", "MAX", "UP", "PENDING", "FAILED", "WHY"}}
			for _, p := range pools {
				most := "-"
				if p.Max > 0 {
					most = fmt.Sprint(p.Max)
				}
				rows = append(rows, []string{p.Name, p.Backend, fmt.Sprint(p.Min), most, fmt.Sprint(p.Up), fmt.Sprint(p.Pending), fmt.Sprint(p.Failed), poolWhy(p)})
			}
			a.table(rows)
			return nil
		},
	}
}

// poolWhy says in a line why a pool has not more nodes.
func poolWhy(p wire.PoolInfo) string {
	if p.Why != "" || len(p.Failures) == 0 {
		return p.Why
	}
	f := p.Failures[0]
	why := cmp.Or(f.Place, string(f.Node)) + ": " + f.Why
	if n := len(p.Failures) - 1; n > 0 {
		why += fmt.Sprintf(" (and %d more, see `launcher status`)", n)
	}
	return why
}

func (a *app) cmdJobs() *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:   "jobs",
		Short: "the cluster's jobs",
		Long:  "List the jobs that wait or run; with --all also those that have ended. Of a cluster that is down, all of them.",
		Args:  argCount(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			src, err := a.source(c.Context())
			if err != nil {
				return err
			}
			defer src.Close()
			jobs, err := src.jobs(c.Context(), all || !src.up())
			if err != nil {
				return err
			}
			if a.json {
				a.printJSON(doc{"jobs": mapAll(jobs, toJSONJob)})
				return nil
			}
			rows := [][]string{{"JOB", "KIND", "STATE", "TASKS", "USES", "TIME", "NAME", "COMMAND"}}
			for _, j := range jobs {
				rows = append(rows, []string{fmt.Sprint(j.ID), string(j.Kind), stateText(j), tasksText(j), usesText(j.Uses), took(j.Started, j.Ended), cut(j.Name, 24), cut(shellJoin(j.Command...), 60)})
			}
			a.table(rows)
			if len(jobs) == 0 && !all && src.up() {
				a.note("no job waits or runs; `launcher jobs --all` lists ended ones")
			}
			return nil
		},
	}
	c.Flags().BoolVar(&all, "all", false, "ended jobs too")
	return c
}

func stateText(j wire.JobInfo) string {
	if j.State == wire.StateFailed {
		return fmt.Sprintf("failed (%d)", j.ExitCode)
	}
	return j.State.String()
}

// usesText is empty for nothing.
func usesText(r wire.Resources) string {
	if r.Nothing() {
		return "-"
	}
	return r.String()
}

func tasksText(j wire.JobInfo) string {
	s := fmt.Sprintf("%d/%d", j.Done+j.Failed+j.Cancelled, j.Tasks)
	if j.Failed > 0 {
		s += fmt.Sprintf(", %d failed", j.Failed)
	}
	return s
}

const tasksLong = `List the tasks of a job of commands; or, without JOB, those that run now of all jobs and the
tasks of programs (SDK) that have not ended, each with what it waits for. Many of the latter
are counted by name. States of a job's tasks are waiting, running, done, failed, cancelled,
lost; those of programs' are waiting (for an argument), queued (for room), running, blocked
(it waits for objects, its room is lent), done, failed, cancelled.`

func (a *app) cmdTasks() *cobra.Command {
	var failed bool
	var f sdkTaskFlags
	c := &cobra.Command{
		Use:   "tasks [JOB[.INDEX]]",
		Short: "the tasks of a job, or of all jobs and programs",
		Long:  tasksLong,
		Args:  argCount(0, 1),
		RunE: func(c *cobra.Command, args []string) error {
			f.listed = c.Flags().Changed("limit")
			if failed {
				f.states = append(f.states, "failed")
			}
			if len(args) == 0 {
				return a.allTasks(c.Context(), f)
			}
			if f.job != 0 || f.name != "" {
				return errs.New(errs.Invalid, "--job and --name choose among the tasks of programs; %s is a job of commands", args[0]).Hint("launcher tasks --job N --name NAME")
			}
			t, has, err := wire.ParseTask(args[0])
			if err != nil {
				return err
			}
			req := wire.TasksRequest{Job: t.Job, Limit: f.limit}
			if has {
				req.Index = &t.Index
			}
			if failed {
				f.states = append(f.states, "lost")
			}
			for _, s := range f.states {
				st, err := parseState(s)
				if err != nil {
					return err
				}
				req.States = append(req.States, st)
			}
			src, err := a.source(c.Context())
			if err != nil {
				return err
			}
			defer src.Close()
			tasks, err := src.tasks(c.Context(), req)
			if err != nil {
				return err
			}
			if a.json {
				a.printJSON(doc{"job": t.Job, "tasks": mapAll(tasks, toJSONTask)})
				return nil
			}
			a.printTasks(a.out, tasks)
			if f.limit > 0 && len(tasks) == f.limit {
				a.note("the first %d; --limit 0 shows all", f.limit)
			}
			return nil
		},
	}
	c.Flags().BoolVar(&failed, "failed", false, "only those that failed")
	c.Flags().StringSliceVar(&f.states, "state", nil, "only those in these states")
	c.Flags().Uint32Var(&f.job, "job", 0, "of programs: only those of this job")
	c.Flags().StringVar(&f.name, "name", "", "of programs: only those of this name")
	c.Flags().IntVar(&f.limit, "limit", 1000, "show at most so many, 0 = all")
	return c
}

func (a *app) printTasks(w io.Writer, tasks []wire.TaskInfo) {
	rows := [][]string{{"TASK", "TRY", "STATE", "NODE", "CODE", "TIME", "CAUSE"}}
	for _, k := range tasks {
		rows = append(rows, taskRow(k.Task.String(), k))
		for _, r := range k.Ranks {
			code := ""
			if r.State.Terminal() {
				code = fmt.Sprint(r.Code)
			}
			rows = append(rows, []string{fmt.Sprintf("  rank %d", r.Rank), "", r.State.String(), string(r.Node), code})
		}
	}
	a.tableTo(w, rows)
}

func taskRow(name string, k wire.TaskInfo) []string {
	code := ""
	if k.State.Terminal() {
		code = fmt.Sprint(k.ExitCode)
	}
	cause := k.Cause
	if cause == "" {
		cause = reasonName(k.Reason)
	}
	return []string{name, fmt.Sprint(k.Attempt), k.State.String(), string(k.Node), code, took(k.Started, k.Ended), cause}
}

func parseState(s string) (wire.State, error) {
	for st := wire.StateWaiting; st <= wire.StateLost; st++ {
		if st.String() == s {
			return st, nil
		}
	}
	return 0, errs.New(errs.Invalid, "%q is no state", s).Hint("states are waiting, running, stopping, done, failed, cancelled, lost")
}

func (a *app) cmdWhy() *cobra.Command {
	return &cobra.Command{
		Use:   "why JOB | JOB.INDEX | POOL | ID",
		Short: "what a job, task or pool waits for",
		Long:  "Say in lines what something waits for: a job, a task of a job, a pool, or by its ID of 32 hex\ndigits a task of a program or the task that makes an object (launcher tasks, launcher objects).",
		Args:  argCount(1, 1),
		RunE: func(c *cobra.Command, args []string) error {
			if isSDKID(args[0]) {
				return a.whySDK(c.Context(), args[0])
			}
			req := wire.Why{}
			if t, has, err := wire.ParseTask(args[0]); err == nil {
				req.Job = t.Job
				if has {
					req.Task = &t.Index
				}
			} else {
				req.Pool = args[0]
			}
			w, err := request[wire.WhyAnswer](c.Context(), a, wire.MsgWhy, req)
			if err != nil {
				return err
			}
			a.printWhy(args[0], w.Lines)
			return nil
		},
	}
}

func (a *app) printWhy(subject string, lines []string) {
	if a.json {
		a.printJSON(doc{"subject": subject, "lines": mapAll(lines, func(s string) string { return s })})
		return
	}
	for _, l := range lines {
		fmt.Fprintln(a.out, l)
	}
}

// metricsText is a report's metrics by name.
func metricsText(m map[string]float64) string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		parts = append(parts, k+"="+number(m[k]))
	}
	return strings.Join(parts, " ")
}

// paramsText is a trial's parameters by name.
func paramsText(m map[string]any) string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		var v string
		switch x := m[k].(type) {
		case string:
			v = quoted(x)
		case float64:
			v = number(x)
		case []byte:
			v = quoted(string(x))
		default:
			b, err := json.Marshal(x)
			if err != nil {
				b = fmt.Append(nil, x)
			}
			v = string(b)
		}
		parts = append(parts, k+"="+v)
	}
	return strings.Join(parts, " ")
}

// quoted is a value on one line, as one word.
func quoted(s string) string {
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return r == ' ' || r == '"' || !strconv.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}
