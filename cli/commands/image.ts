// godwit image: the images of this host's node, over its unix socket.
import { basename, resolve } from 'node:path'
import { formatBytes } from '../../ops/units.ts'
import type { MigrationProgress } from '../../wire/control.ts'
import { fromBody } from '../../wire/errors.ts'
import type { ImageCopyView, ImageView } from '../../wire/node-api.ts'
import { askNode } from '../client.ts'
import { type CliCommand, command, shared } from '../command.ts'
import { json, listing, table } from '../output.ts'
import { createProgress } from '../progress.ts'

const common = { json: shared.json, socket: shared.socket } as const
const name = { name: 'NAME', help: 'name of the image' } as const
const POLL_MS = 300
const pathOf = (image: string) => `/v1/images/${encodeURIComponent(image)}`

const FORMATS = ['raw', 'qcow2', 'vmdk', 'vdi', 'vhdx', 'vpc'] as const

const importImage = command({
  name: 'image import',
  summary: 'import an image from a file or URL',
  details:
    'The node copies or downloads the file, compares its checksum, converts it to a raw file with holes and computes its Merkle root. VMs name it in a ' +
    'disk of mode local. An image never changes: another content needs another name. The import continues when this command is ended; ' +
    'godwit image remove cancels it.',
  positionals: [{ name: 'FILE|URL', help: 'a file of this host, or an http(s) URL' }],
  options: {
    name: { kind: 'text', value: 'NAME', help: 'name of the image (default: the file name without its ending)' },
    format: { kind: 'choice', choices: FORMATS, help: 'format of the file (default: qcow2 if it begins like one, otherwise raw)' },
    sha256: { kind: 'text', value: 'HEX', help: 'SHA-256 that the file must have' },
    ...common,
  },
  examples: ['godwit image import debian-12-genericcloud-amd64.qcow2 --name debian-12', 'godwit image import disk.raw --sha256 HEX'],
  run: async ({ options, args, io }) => {
    const from = /^https?:/.test(args[0]!) ? args[0]! : resolve(args[0]!)
    const image = options.name ?? basename(from).replace(/\.[A-Za-z0-9]+$/, '')
    const body = { name: image, from, ...(options.format && { format: options.format }), ...(options.sha256 && { sha256: options.sha256 }) }
    const progress = createProgress(io, () => performance.now(), options.json)
    let view = await askNode<ImageView>(io, options, { method: 'POST', path: '/v1/images', body })
    while (view.state === 'importing') {
      progress.update(asMigration(view))
      await new Promise(wait => setTimeout(wait, POLL_MS))
      view = await askNode<ImageView>(io, options, { path: pathOf(image) })
    }
    progress.finish()
    if (view.state === 'failed') throw fromBody(view.error)
    io.out(options.json ? json(view) : `imported ${image}: ${formatBytes(view.sizeBytes)}, root ${view.root}\n`)
    return 0
  },
})

/** The same bar as a migration's. */
const asMigration = ({ step, bytesDone, bytesTotal }: Extract<ImageView, { state: 'importing' }>): MigrationProgress =>
  ({ phase: step, bytesSent: bytesDone, bytesTotal: bytesTotal ?? 0 }) as unknown as MigrationProgress

const copyImage = command({
  name: 'image copy',
  summary: 'copy an image to another site',
  details:
    'The image goes through the gateway, encrypted end to end. Only chunks that the other site lacks are sent; it compares the whole image with its ' +
    'Merkle root. A lost link is waited for. The copy continues when this command is ended; --cancel ends it. What has come stays at the other site, ' +
    'and a later copy continues from there.',
  positionals: [name],
  options: {
    to: { kind: 'text', value: 'SITE', help: 'the other site', required: true },
    cancel: { kind: 'flag', help: 'end a copy that runs' },
    ...common,
  },
  examples: ['godwit image copy debian-12 --to munich'],
  run: async ({ options, args, io }) => {
    const image = args[0]!
    const path = `${pathOf(image)}/copies`
    const here = `${path}/${encodeURIComponent(options.to)}`
    if (options.cancel) {
      const answer = await askNode<unknown>(io, options, { method: 'DELETE', path: here })
      io.out(options.json ? json(answer) : `cancelled the copy of ${image} to ${options.to}\n`)
      return 0
    }
    const progress = createProgress(io, () => performance.now(), options.json)
    let view = await askNode<ImageCopyView>(io, options, { method: 'POST', path, body: { to: options.to } })
    while (view.state === 'copying') {
      const { bytesDone: bytesSent, ...figures } = view
      progress.update({ phase: 'copying', bytesSent, ...figures } as unknown as MigrationProgress)
      await new Promise(wait => setTimeout(wait, POLL_MS))
      view = await askNode<ImageCopyView>(io, options, { path: here })
    }
    progress.finish()
    if (view.error) throw fromBody(view.error)
    io.out(options.json ? json(view) : `copied ${image} to ${options.to}\n`)
    return 0
  },
})

const list = command({
  name: 'image list',
  summary: 'list the images of this node',
  options: common,
  examples: ['godwit image list'],
  run: async ({ options, io }) => {
    const { images } = await askNode<{ images: ImageView[] }>(io, options, { path: '/v1/images' })
    const rows = images.map(image =>
      'root' in image
        ? [image.name, image.state, formatBytes(image.sizeBytes), formatBytes(image.allocatedBytes), image.root.slice(0, 16)]
        : [image.name, image.state === 'failed' ? `failed (${image.error.code})` : `${image.state} (${image.step})`, '', '', ''],
    )
    io.out(options.json ? json(images) : table(['IMAGE', 'STATE', 'SIZE', 'ON DISK', 'ROOT'], rows, 'no images'))
    return 0
  },
})

const show = command({
  name: 'image show',
  summary: 'show the details of an image',
  positionals: [name],
  options: common,
  examples: ['godwit image show debian-12 --json'],
  run: async ({ options, args, io }) => {
    const image = await askNode<ImageView>(io, options, { path: pathOf(args[0]!) })
    const rows = Object.entries(image).map(([key, value]): [string, string] => [
      key,
      typeof value === 'string' ? value : JSON.stringify(value),
    ])
    io.out(options.json ? json(image) : listing(rows))
    return 0
  },
})

const remove = command({
  name: 'image remove',
  summary: 'remove an image, or cancel its import',
  details: 'An image that a VM uses is not removed (IMAGE_IN_USE).',
  positionals: [name],
  options: common,
  examples: ['godwit image remove debian-12'],
  run: async ({ options, args, io }) => {
    const answer = await askNode<unknown>(io, options, { method: 'DELETE', path: pathOf(args[0]!) })
    io.out(options.json ? json(answer) : `removed ${args[0]}\n`)
    return 0
  },
})

export const imageCommands: CliCommand[] = [importImage, copyImage, list, show, remove]
