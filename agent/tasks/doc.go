// Package tasks is the reactor that owns the tasks and objects of programs on a node:
// who waits for what, which worker runs what, who still refers to which object, and how
// a lost one can be made again. It is pure: no I/O, no clock, no goroutine, no lock.
//
// The agent's shell gives it the frames of drivers and workers (docs/tasks.md) under one
// lock, then takes the Output: records are written to the log first, effects performed,
// frames sent. Frames are appended to one buffer per client, so a task costs no message
// of its own inside the agent.
//
// The log holds the inputs (frames, comings and goings of clients) and the one kind of
// decision that does not follow from them: which worker got which task. Restore repeats
// them without acting; Snapshot gives a state as few records.
//
// Tasks of one shape (the options of a function) wait in one queue, whatever their
// number. A worker takes room for a shape and keeps it from task to task while the
// shape's turn lasts; tasks that have proved short are sent ahead of the worker, several
// at a time, and are withdrawn again when the one before them turns out long. A worker
// that waits for objects lends its cores; when there may be no more workers it runs what
// it waits for itself, on top of its stack.
//
// A lease on another node is used like a worker with several places: see leases.go.
package tasks
