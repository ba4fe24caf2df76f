// What one run gave. Pure. Times in ms as the bench's own clock saw them, bytes as the link's driver counted them (IP packets, both hops of none: one link).

export type Outcome = {
  cell: string
  guest: string
  variant: string
  repetition: number
  /** Absent: done. */
  failure?: string
  /** From the command until the tool says that it is done. */
  totalMs?: number
  /** The longest silence of the guest's beats from the command to the end, and where it fell. */
  downtimeMs?: number
  isAtSwitchover?: boolean
  /** IP bytes that entered the link, lost ones included. */
  bytesAb: number
  bytesBa: number
  /** IP bytes that came out at b. */
  deliveredAb: number
  /** Part of the guest's work left undone while the migration ran (downtime left out); negative: it did more. */
  slowdown?: number
  cpuSeconds: number
  /** Part of the packets that the driver released more than 1 ms, and more than 5 ms late: how far this machine kept the link. */
  late1: number
  late5: number
  /** Part of the time that the host took away from this machine (steal). */
  steal: number
  badLines: number
  note?: string
  /** Of this project; absent where git does not say. */
  commit?: string
}
