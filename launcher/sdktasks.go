package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"launcher/internal/errs"
	"launcher/wire"
)

// sdkTaskFlags are the flags of `launcher tasks` without a job.
type sdkTaskFlags struct {
	job    uint32
	name   string
	states []string
	limit  int
	listed bool // the user gave a limit: list, whatever there is
}

// manyTasks is how many tasks are listed before they are counted by name instead.
const manyTasks = 100

var sdkStates = []string{wire.TaskRunning, wire.TaskBlocked, wire.TaskQueued, wire.TaskWaiting, wire.TaskDone, wire.TaskFailed, wire.TaskCancelled}

// sdkTasks asks all nodes for the tasks that programs have submitted through an SDK.
func (a *app) sdkTasks(ctx context.Context, f sdkTaskFlags) (wire.SDKTasks, []unreached, error) {
	for _, s := range f.states {
		if !slices.Contains(sdkStates, s) {
			return wire.SDKTasks{}, nil, errs.New(errs.Invalid, "%q is no state of a task", s).Hint("states are %s", strings.Join(sdkStates, ", "))
		}
	}
	limit := f.limit
	if limit == 0 {
		limit = 1 << 20
	}
	q := wire.SDKTaskQuery{Job: wire.JobID(f.job), Name: f.name, States: f.states, Limit: limit}
	by, lost, err := ask[wire.SDKTasks](ctx, a, wire.QueryTasks, "", q)
	if err != nil {
		return wire.SDKTasks{}, lost, err
	}
	all := mergeTasks(by)
	all.Tasks = all.Tasks[:min(limit, len(all.Tasks))]
	return all, lost, nil
}

func mergeTasks(by map[wire.NodeID]wire.SDKTasks) wire.SDKTasks {
	all := wire.SDKTasks{Tasks: oneOfEach(by)}
	type key struct{ name, state string }
	at := map[key]int{}
	for _, t := range by {
		for _, c := range t.Counts {
			k := key{c.Name, c.State}
			i, ok := at[k]
			if !ok {
				i, at[k] = len(all.Counts), len(all.Counts)
				all.Counts = append(all.Counts, wire.SDKTaskCount{Name: c.Name, State: c.State})
			}
			all.Counts[i].Count += c.Count
			all.Counts[i].Why = cmp.Or(all.Counts[i].Why, c.Why)
		}
	}
	rank := func(s string) int { return slices.Index(sdkStates, s) }
	slices.SortFunc(all.Tasks, func(x, y wire.SDKTask) int {
		return cmp.Or(cmp.Compare(rank(x.State), rank(y.State)), cmp.Compare(x.Submitted, y.Submitted), cmp.Compare(x.ID, y.ID))
	})
	slices.SortFunc(all.Counts, func(x, y wire.SDKTaskCount) int {
		return cmp.Or(cmp.Compare(x.Name, y.Name), cmp.Compare(rank(x.State), rank(y.State)))
	})
	return all
}

// oneOfEach has one line of each task: of one that its owner gave to another node that node's,
// with what only the owner knows.
func oneOfEach(by map[wire.NodeID]wire.SDKTasks) []wire.SDKTask {
	out := []wire.SDKTask{}
	owners, there := map[string]wire.SDKTask{}, map[string]bool{}
	for _, n := range by {
		for _, t := range n.Tasks {
			if t.Away {
				owners[t.ID] = t
			} else {
				there[t.ID] = true
			}
		}
	}
	for _, n := range by {
		for _, t := range n.Tasks {
			if t.Away && there[t.ID] {
				continue
			}
			if o, ok := owners[t.ID]; ok {
				t.Parent, t.Submitted = o.Parent, o.Submitted
			}
			out = append(out, t)
		}
	}
	return out
}

// printSDKTasks prints the tasks, or how many there are of each name when they are many.
func (a *app) printSDKTasks(t wire.SDKTasks, f sdkTaskFlags) {
	var total int64
	for _, c := range t.Counts {
		total += c.Count
	}
	if total > manyTasks && !f.listed {
		rows := [][]string{{"NAME", "STATE", "TASKS", "WHY"}}
		for _, c := range t.Counts {
			rows = append(rows, []string{cut(c.Name, 40), c.State, fmt.Sprint(c.Count), cut(c.Why, 100)})
		}
		a.table(rows)
		a.note("%d tasks, counted by name; --limit 50 lists the first 50 of them, --name and --state choose", total)
		return
	}
	if len(t.Tasks) == 0 {
		return
	}
	rows := [][]string{{"TASK", "NAME", "STATE", "TRY", "NODE", "WORKER", "TIME", "WHY"}}
	for _, k := range t.Tasks {
		worker, why := "", k.Why
		if k.Worker > 0 {
			worker = fmt.Sprint(k.Worker)
		}
		if why == "" && len(k.WaitsFor) > 0 {
			why = "waits for " + k.WaitsFor[0]
			if n := len(k.WaitsFor) - 1; n > 0 {
				why += fmt.Sprintf(" and %d more", n)
			}
		}
		rows = append(rows, []string{k.ID, cut(k.Name, 32), k.State, fmt.Sprint(k.Attempt), string(k.Node), worker, took(cmp.Or(k.Started, k.Submitted), k.Ended), cut(why, 100)})
	}
	a.table(rows)
	if int64(len(t.Tasks)) < total {
		a.note("%d of %d; --limit 0 lists all", len(t.Tasks), total)
	}
}

// allTasks is `launcher tasks` without a job: what runs now of the jobs, and the tasks of
// programs that have not ended.
func (a *app) allTasks(ctx context.Context, f sdkTaskFlags) error {
	sdk, lost, err := a.sdkTasks(ctx, f)
	if err != nil && len(lost) == 0 {
		return err
	}
	jobs, err := a.runningTasks(ctx, f)
	if err != nil {
		return err
	}
	if a.json {
		a.printJSON(doc{"tasks": mapAll(jobs, toJSONTask), "sdk": mapAll(sdk.Tasks, toJSONSDKTask),
			"counts": mapAll(sdk.Counts, func(c wire.SDKTaskCount) wire.SDKTaskCount { return c }), "unreached": mapAll(lost, func(u unreached) unreached { return u })})
		return nil
	}
	if len(jobs) > 0 || len(sdk.Counts) == 0 {
		a.printTasks(a.out, jobs)
	}
	if len(jobs) > 0 && len(sdk.Counts) > 0 {
		fmt.Fprintln(a.out)
	}
	a.printSDKTasks(sdk, f)
	a.noteUnreached(lost)
	return nil
}

// runningTasks lists what runs now of the jobs that match.
func (a *app) runningTasks(ctx context.Context, f sdkTaskFlags) ([]wire.TaskInfo, error) {
	if f.name != "" || len(f.states) > 0 && !slices.Contains(f.states, wire.TaskRunning) {
		return nil, nil
	}
	c, err := a.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	var jobs []wire.JobInfo
	if err := c.call(ctx, wire.MsgJobs, wire.JobsRequest{}, &jobs); err != nil {
		return nil, err
	}
	var all []wire.TaskInfo
	for _, j := range jobs {
		if f.job != 0 && wire.JobID(f.job) != j.ID {
			continue
		}
		var tasks []wire.TaskInfo
		req := wire.TasksRequest{Job: j.ID, States: []wire.State{wire.StateRunning, wire.StateStopping}, Limit: f.limit}
		if err := c.call(ctx, wire.MsgTasks, req, &tasks); err != nil {
			return nil, err
		}
		all = append(all, tasks...)
	}
	return all, nil
}

// whySDK prints what a placement group, a task, or the task that makes an object waits for.
func (a *app) whySDK(ctx context.Context, id string) error {
	lines, err := a.whyGroup(ctx, id)
	if err != nil {
		return err
	}
	if len(lines) > 0 { // no node knows it as a task
		a.printWhy(id, lines)
		return nil
	}
	by, lost, err := ask[wire.SDKWhy](ctx, a, wire.QueryWhy, "", wire.SDKWhyQuery{ID: id})
	if err != nil {
		return err
	}
	var owner []string
	for _, w := range by {
		if w.Away {
			owner = w.Lines
		} else {
			lines = append(lines, w.Lines...)
		}
	}
	if len(lines) == 0 {
		lines = owner
	}
	if len(lines) == 0 {
		e := errs.New(errs.NotFound, "no node knows a task or object %s", id).Hint("`launcher tasks` and `launcher objects` list them; what has ended and is referred to by nobody is forgotten")
		for _, u := range lost {
			e = e.Hint("node %s did not answer: %s", u.Node, u.Message)
		}
		return e
	}
	a.printWhy(id, lines)
	return nil
}

// whyGroup says what a placement group waits for; nothing = there is none with that id.
func (a *app) whyGroup(ctx context.Context, id string) ([]string, error) {
	x, err := wire.ParseObjectID(id)
	if err != nil {
		return nil, err
	}
	got, err := request[[]wire.GroupInfo](ctx, a, wire.MsgGroup, wire.GroupRequest{What: wire.GroupLook, ID: x})
	if err != nil || len(got) != 1 {
		return nil, err
	}
	line := "placement group " + cmp.Or(got[0].Spec.Name, id) + " is " + got[0].State.String()
	if got[0].Why != "" {
		line += ": " + got[0].Why
	}
	return []string{line}, nil
}
