// Number of invocations of a workgroup.

override WORKGROUP: u32;
