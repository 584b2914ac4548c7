// Package uplinks keeps the programs of the packet path where they belong: on every device that leads off the node, before all
// other programs, with the maps that they need.
//
// A [Keeper] is told which devices that are ([devices.Follower]) and does the rest: it makes the maps, loads each kind of
// program once, attaches it to each device, both ways or neither (natinit/attach), tells the programs which address
// of the node masqueraded packets get, and looks every few seconds whether all of it is still so.
//
// What goes wrong with one device leaves the others served, is in Status, and is tried again.
package uplinks
