// Reads the disks of a running VM through its QEMU, by dirty bitmaps: each swap freezes what was written since the one
// before, on all disks at one instant.
// Enters: QMP, the names of QEMU's block nodes. Leaves: written chunks and their content. Source: QEMU
// docs/interop/bitmaps, live-block-operations.
// Always holds: the guest's writes are never held back; the bitmaps and exports are gone after close(), also when a
// step failed; QEMU loses nothing when this process dies: bitmaps that are left are removed by the next open().
import { join } from 'node:path'
import { within } from '../../ops/deadline.ts'
import { GodwitError, hasCode } from '../../wire/errors.ts'
import type { QmpClient } from '../qmp/client.ts'
import type { QmpObject } from '../qmp/codec.ts'
import { connectUnix } from '../qmp/socket.ts'
import type { ChunkSet } from './chunk-set.ts'
import { CHUNK_BYTES } from './chunk-tree.ts'
import { CONTENT_CONTEXTS, marked, ownContent } from './extents.ts'
import type { Leaves } from './leaves.ts'
import { bitmapContext, type NbdClient, openNbd } from './nbd/client.ts'
import { DIRTY } from './nbd/codec.ts'
import type { DiskReaders } from './sender.ts'

const NBD_SOCKET = 'nbd.sock'
const DELETED_MS = 30_000
/** How long QEMU may be silent while clients connect: at the first try, at the last. */
const SILENT_FIRST_MS = 250
const SILENT_LAST_MS = 16_000
const BITMAP = 'godwit-'

export type QemuDisk = {
  /** Of the format node: 'disk0'. */
  node: string
  sizeBytes: number
  /** What it began with: zeros of the disk's own layer count only where this has none. */
  base: Leaves
}

/** An export of QEMU's, with our connection to it. */
type Exported = { name: string; client: NbdClient | undefined }

export type QemuReader = DiskReaders & AsyncDisposable

export async function openQemuReader({
  qmp,
  runDir,
  disks,
}: {
  qmp: QmpClient
  runDir: string
  disks: readonly QemuDisk[]
}): Promise<QemuReader> {
  const run = (command: string, args?: QmpObject) => qmp.execute(command, args)
  let swaps = 0
  let clients: NbdClient[] = []
  const exports = createExports(qmp, runDir, disks)
  const bitmapOf = (swap: number) => `${BITMAP}${swap}`

  /** Starts to record writes on all disks; ends the recording before that. */
  const switchBitmaps = async () => {
    const actions = disks.flatMap(({ node }) => [
      { type: 'block-dirty-bitmap-add', data: { node, name: bitmapOf(swaps + 1), granularity: CHUNK_BYTES } },
      ...(swaps === 0 ? [] : [{ type: 'block-dirty-bitmap-disable', data: { node, name: bitmapOf(swaps) } }]),
    ])
    await run('transaction', { actions })
    swaps++
  }
  const removeBitmaps = async () => {
    for (const { node, name } of await ourBitmaps(qmp, disks)) await run('block-dirty-bitmap-remove', { node, name })
  }
  const close = async () => {
    await exports.close().catch(() => {})
    await removeBitmaps().catch(() => {})
    await run('nbd-server-stop').catch(() => {})
  }
  await refuseOthers(qmp)
  await run('nbd-server-stop').catch(() => {}) // an earlier agent's
  await removeBitmaps()
  await run('nbd-server-start', { addr: { type: 'unix', data: { path: NBD_SOCKET } }, 'max-connections': 0 })
  return {
    sizesBytes: disks.map(({ sizeBytes }) => sizeBytes),
    async swap() {
      await exports.close()
      const frozen = swaps === 0 ? undefined : bitmapOf(swaps)
      await switchBitmaps()
      const old = frozen === undefined ? [] : await ourBitmaps(qmp, disks)
      for (const { node, name } of old)
        if (name !== frozen && name !== bitmapOf(swaps)) await run('block-dirty-bitmap-remove', { node, name })
      const written: ChunkSet[] = []
      clients = await exports.open(frozen)
      for (const [i, client] of clients.entries()) {
        const disk = disks[i]!
        if (client.sizeBytes !== disk.sizeBytes)
          throw new GodwitError('PREFLIGHT_FILE_CHANGED', `${disk.node} has ${client.sizeBytes} bytes now, it had ${disk.sizeBytes}`, {
            hint: 'resize the disk to the size in its specification, or create a VM with the new size',
          })
        written.push(
          await (frozen === undefined ? ownContent(client, disk.base) : marked(client, bitmapContext(frozen), flags => flags === DIRTY)),
        )
      }
      return written
    },
    async read(disk, chunk, into) {
      const client = clients[disk]
      if (!client) throw new TypeError('read before swap')
      await client.read(chunk * CHUNK_BYTES, into)
    },
    [Symbol.asyncDispose]: () => within(close(), { ms: 2 * DELETED_MS, what: 'the end of the exports of disks' }).catch(() => {}),
  }
}

async function ourBitmaps(qmp: QmpClient, disks: readonly QemuDisk[]): Promise<{ node: string; name: string }[]> {
  const nodes = await qmp.execute<QmpObject[]>('query-named-block-nodes', { flat: true })
  return nodes.flatMap(found => {
    const node = String(found['node-name'])
    if (!disks.some(disk => disk.node === node) || !Array.isArray(found['dirty-bitmaps'])) return []
    const names = found['dirty-bitmaps'].map(bitmap => String((bitmap as QmpObject)['name']))
    return names.filter(name => name.startsWith(BITMAP)).map(name => ({ node, name }))
  })
}

/** VM_STATE where somebody else works with the disks in this QEMU: a backup, say. */
async function refuseOthers(qmp: QmpClient): Promise<void> {
  const [job] = await qmp.execute<QmpObject[]>('query-block-jobs')
  const foreign = (await qmp.execute<QmpObject[]>('query-block-exports')).find(({ id }) => !String(id).startsWith(BITMAP))
  const what = job ? `a block job (${job['type']})` : foreign && `an export of a disk (${foreign['id']})`
  if (what) throw new GodwitError('VM_STATE', `${what} runs in the VM's QEMU`, { hint: 'wait for its end, or end it, and try again' })
}

/** Exports of all disks at QEMU's NBD server, with our connection to each. */
function createExports(qmp: QmpClient, runDir: string, disks: readonly QemuDisk[]) {
  let exported: Exported[] = []
  const close = async () => {
    for (const { client } of exported) client?.close()
    for (const { name } of exported) {
      const gone = qmp.waitFor(({ event, data }) => event === 'BLOCK_EXPORT_DELETED' && data['id'] === name, { ms: DELETED_MS })
      gone.catch(() => {})
      await qmp.execute('block-export-del', { id: name, mode: 'hard' })
      await gone
    }
    exported = []
  }
  const addExport = async ({ node }: QemuDisk, bitmap: string | undefined) => {
    const name = `${BITMAP}${node}`
    await qmp.execute('block-export-add', {
      ...{ type: 'nbd', id: name, 'node-name': node, name, writable: false, 'allocation-depth': bitmap === undefined },
      ...(bitmap === undefined ? {} : { bitmaps: [bitmap] }),
    })
    exported.push({ name, client: undefined })
  }
  /** Throws TIMEOUT or QEMU_TIMEOUT when QEMU is silent for `ms`. */
  const connectAll = async (contexts: readonly string[], ms: number): Promise<NbdClient[]> => {
    const clients: NbdClient[] = []
    for (const one of exported) {
      const socket = await connectUnix(join(runDir, NBD_SOCKET), ms)
      one.client = await openNbd(socket, { export: one.name, contexts, handshakeMs: ms })
      clients.push(one.client)
    }
    await qmp.execute('query-name', undefined, { timeoutMs: ms })
    return clients
  }
  /**
   * QEMU that waits for its disks to be idle (at a stop, at the reset of a device) waits for ever for a client that
   * connects meanwhile: it answers nothing until the client has gone. So all exports are there before the first
   * connection, QEMU is asked after the last, and connections to a QEMU that is silent are closed and made again.
   */
  const open = async (bitmap: string | undefined): Promise<NbdClient[]> => {
    const contexts = bitmap === undefined ? CONTENT_CONTEXTS : [bitmapContext(bitmap)]
    for (let ms = SILENT_FIRST_MS; ; ms *= 2) {
      for (const disk of disks) await addExport(disk, bitmap)
      try {
        return await connectAll(contexts, ms)
      } catch (error) {
        if (ms >= SILENT_LAST_MS || !(hasCode(error, 'TIMEOUT') || hasCode(error, 'QEMU_TIMEOUT'))) throw error
      }
      await close()
    }
  }
  return { open, close }
}
