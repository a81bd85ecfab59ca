// Package core is the agent's reactor: it decides which processes run on a node, with
// which cores and GPUs, when they are signalled, what is reported to the head and what
// a program in a run is answered. It is pure: no I/O, no clock, no goroutine, no lock.
// Time comes in as unix nanoseconds.
//
// The agent's shell turns everything that happens into Events, one at a time, and calls
//
//	out := c.Step(now, ev)
//
// It appends out.Records to the state journal first, then performs out.Effects in
// order. The journal lies in memory that the supervisor holds, so an agent that is
// killed at any instant finds it whole: the next agent applies the records to an empty
// State, makes a new Core of it and gives it Recovered with the supervisor's list of
// processes. An effect whose record was written but that was never performed is
// performed again then; every effect is harmless when performed twice.
//
// Events come in bursts. The shell takes what is there, steps through it, and gives
// Flush at the end of the burst: completions and starts are sent to the head then, as
// one message each.
//
// The simulator links this package; so does the agent; there is no second version.
package core
