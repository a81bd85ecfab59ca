// Package workers starts, watches and ends the processes that run tasks, and reads what
// they print.
//
// A Python worker is forked from a template, an interpreter that has imported the SDK and
// waits; there is one per environment and job. The template is a process of the
// supervisor's; the worker, forked twice, is an orphan of its own, so the supervisor
// reaps it and tells its end. A program in another language is started by the supervisor
// as it is. docs/tasks.md section 6 is the contract.
//
// The sweeper spares what carries the name of a running process: workers carry their
// template's, so they live no longer than it. What must survive the agent (the socket of
// a template, the reading ends of the output) is kept by the supervisor under names that
// say all that the next agent needs to know (see Take).
package workers
