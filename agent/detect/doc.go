// Package detect finds what a node has: the cores and memory that this process may
// really use (affinity and control groups looked at), GPUs and who is on them, Python,
// the load. It reads files and asks programs; it changes nothing.
//
// What reads files takes the root of the file system, "/" on a live machine, so that
// tests feed recorded trees.
package detect
