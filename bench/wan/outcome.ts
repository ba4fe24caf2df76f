// The outcome of one run. Pure. Times in ms by the benchmark's own clock, bytes by the link's driver (IP packets on the
// link).

export type BenchRun = {
  cell: string
  guest: string
  variant: string
  repetition: number
  /** Absent: completed. */
  failure?: string
  /** From the command until the tool reports completion. */
  totalMs?: number
  /** The longest gap of the guest's beats from the command to the end, and its position. */
  downtimeMs?: number
  isAtSwitchover?: boolean
  /** IP bytes that entered the link, including lost ones. */
  bytesAb: number
  bytesBa: number
  /** IP bytes that arrived at b. */
  deliveredAb: number
  /** Share of the guest's work that was not done during the migration (without the downtime); negative: it did more. */
  slowdown?: number
  cpuSeconds: number
  /**
   * Share of packets that the driver released more than 1 ms, and more than 5 ms late: the accuracy of the link on this
   * machine.
   */
  late1: number
  late5: number
  /** Share of steal time of this machine. */
  steal: number
  badLines: number
  note?: string
  /** Commit of this project; absent if git does not know it. */
  commit?: string
}
