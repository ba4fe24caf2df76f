// Every decoder that reads from a peer, as a fuzz target. A new one needs a file in targets/ and a line here.
import type { Target } from './target.ts'
import { applier } from './targets/applier.ts'
import { batch } from './targets/batch.ts'
import { bodies } from './targets/bodies.ts'
import { certificates } from './targets/certificates.ts'
import { commands } from './targets/commands.ts'
import { controlTarget } from './targets/control.ts'
import { disk } from './targets/disk.ts'
import { eventStream } from './targets/event-stream.ts'
import { frames } from './targets/frames.ts'
import { handshake } from './targets/handshake.ts'
import { link } from './targets/link.ts'
import { messages } from './targets/messages.ts'
import { mux } from './targets/mux.ts'
import { preamble } from './targets/preamble.ts'
import { qemuStream } from './targets/qemu-stream.ts'
import { records } from './targets/records.ts'
import { returnPath } from './targets/return-path.ts'
import { rpc } from './targets/rpc.ts'
import { sealedStream } from './targets/sealed-stream.ts'

export const TARGETS: readonly Target[] = [
  ...[frames, controlTarget, link, rpc, mux, certificates, handshake, records, sealedStream],
  ...[messages, batch, applier, disk, returnPath, qemuStream],
  ...[commands, bodies, preamble, eventStream],
]

export const targetNamed = (name: string): Target | undefined => TARGETS.find(target => target.name === name)
