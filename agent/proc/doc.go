// Package proc starts, watches and ends processes: the mechanics below the process
// server of agent/supervisor. It knows Linux, and nothing of jobs, clusters or frames.
//
// What starts others must call Start on one goroutine that is locked to its thread for
// life (see Starter), because three things of a child come from the thread that made
// it: the cores it is bound to, its signal mask, and the death it dies with its parent.
package proc
