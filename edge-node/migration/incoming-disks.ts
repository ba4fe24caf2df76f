// The target's corridor for a VM that does not run: sealed streams -> the files of its disks. No QEMU, no memory.
// Always holds: over any number of meetings each frame is taken once (taken-streams.ts); what is not of a disk is
// refused.
import { GodwitError } from '../../wire/errors.ts'
import { countedRoles } from '../../wire/roles.ts'
import { FRAME } from '../../wire/types.ts'
import { createTakenStreams } from '../channel/taken-streams.ts'
import type { Incoming } from './incoming.ts'

type IncomingDisksOptions = {
  /** Page streams that the plan names. */
  pageStreams: number
  /** Takes DISK payloads; absent: the VM has no local disk. */
  disk?: ((payload: Uint8Array) => Promise<void>) | undefined
  onAck: (receivedBytes: number, taken: number[]) => void
  onLost: (error: GodwitError) => void
  fail: (error: GodwitError) => void
}

/** What a story needs of a corridor, whether a QEMU stands at its end or not. */
export type TakenCorridor = Pick<Incoming, 'meet' | 'accept' | 'ended' | 'stateMs' | 'loadMs' | 'abort'>

export function createIncomingDisks({ pageStreams, disk, onAck, onLost, fail }: IncomingDisksOptions): TakenCorridor {
  const streams = createTakenStreams({
    roles: countedRoles(pageStreams),
    hasDisks: disk !== undefined,
    ...{ onAck, onLost, fail },
    async take(role, { type, payload }) {
      if (role.kind === 'pages' && type === FRAME.DISK && disk) return await disk(payload)
      throw new GodwitError('FRAME_MALFORMED', 'the source of a VM that does not run sent something else than its disks')
    },
    onWhole: async () => {},
  })
  return {
    meet: streams.meet,
    accept: streams.accept,
    ended: streams.ended,
    stateMs: () => 0,
    loadMs: () => 0,
    abort: async error => streams.leave(error.code),
  }
}
