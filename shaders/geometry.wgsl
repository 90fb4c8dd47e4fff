// Invocations of a workgroup.

override WORKGROUP: u32;
