// Package broker asks backends for nodes. It runs where the rights are: the ssh keys,
// sbatch, the Kerberos ticket. Running work never needs it; new nodes do.
//
// A Broker is what the head sees of backends: one object that knows them by name, asks
// each of them no more at a time and no more often than it takes, and tries again what may
// succeed later. Every call is bounded by its context and safe to repeat: submissions carry a
// token that the head has written down before.
//
// The link is the other half: the client's process on a machine that is no node. It
// keeps one authenticated session to the head and lets commands and programs of the same
// user share it through a socket.
package broker
