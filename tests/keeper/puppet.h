// SPDX-License-Identifier: MIT
#pragma once
/*
 * What test and puppet say to each other: one packet a command or answer, text and descriptors.
 *
 *   notify TEXT       sends TEXT to the manager with the descriptors that came along → ok RESULT
 *   fork-notify TEXT  the same by a child of its own → ok RESULT
 *   barrier           → ok RESULT
 *   many PREFIX N     makes N memfds that contain their name, and stores each under it → ok MICROSECONDS
 *   names             → ok NAME:NAME:…, of what it was given at its start
 *   verify            → ok COUNT, of given memfds that contain their name
 *   fd NAME           → ok, and the descriptor of that name; or: none
 *   env NAME          → ok VALUE
 *   ignore SIGNAL     → ok
 *   linger            leaves a process behind → ok PID
 *   orphan            leaves a process behind that ends soon → ok PID
 *   exit STATUS
 *
 * On its own it says "signal N" for each of TERM, INT, QUIT, HUP, USR1 and USR2. It ends when the test does.
 */
#define PUPPET_PACKET_MAX (128u * 1024)
#define PUPPET_FDS_MAX 250
