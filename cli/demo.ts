// godwit demo: the whole on one machine, with the real product: processes, QUIC, certificates, QEMU. Two scenes: a VM is moved three times by command, then a VM
// follows a user who drives past three sites. Each with proof that nothing was lost. Exit code 0 only if every check passed.
import { mkdir, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { GodwitError } from '../wire/errors.ts'
import type { DemoContext, SceneResult } from './demo/scene.ts'
import { processIo } from './io.ts'
import { json } from './output.ts'

const USAGE = `Usage: godwit demo [OPTIONS]

Two scenes, one after the other (about two and a half minutes):

  moves  boots a Linux guest of 384 MiB at site A and moves it A -> B -> A live, then to B cold, over 100 Mbit/s and 40 ms
  drive  three sites, and a user who drives past them on an emulated 5G network; the user's client asks a service in a VM for a page all the time,
         what it measures goes out over MQTT, the policy decides, and the VM follows twice; at the end, what the user saw of it

Options:
  --short   the moves only
  --drive   the drive only
  --seed N  the user's way and the network's wander (default 1)
  --keep    leave the demo's folder (logs, keys, consoles) when it ends
  --json    print one JSON object at the end
  --help    show this
`

type Scene = 'moves' | 'drive'
export type DemoWish = { scenes: Scene[]; seed: number; isKept: boolean; isJson: boolean }

/** 'help', or what is wanted. USAGE. */
export function parseDemo(args: string[]): DemoWish | 'help' {
  const flag = { type: 'boolean', default: false } as const
  const options = { short: flag, drive: flag, keep: flag, json: flag, help: flag, seed: { type: 'string', default: '1' } } as const
  const wrong = (message: string) => new GodwitError('USAGE', message, { hint: 'see godwit demo --help' })
  try {
    const { values } = parseArgs({ args, options })
    if (values.help) return 'help'
    if (!/^[0-9]{1,9}$/.test(values.seed)) throw wrong(`--seed: expected a number from 0 to 999999999, not '${values.seed}'`)
    if (values.short && values.drive) throw wrong('--short and --drive exclude each other; without either both scenes are played')
    const scenes: Scene[] = values.short ? ['moves'] : values.drive ? ['drive'] : ['moves', 'drive']
    return { scenes, seed: Number(values.seed), isKept: values.keep, isJson: values.json }
  } catch (error) {
    if (error instanceof GodwitError) throw error
    throw wrong(error instanceof Error ? error.message : String(error))
  }
}

export async function demo(args: string[]): Promise<number> {
  const io = processIo()
  const wish = parseDemo(args)
  if (wish === 'help') {
    io.out(USAGE)
    return 0
  }
  const { scenes, seed, isKept, isJson } = wish
  const say = (text: string) => (isJson ? io.err : io.out)(`${text}\n`)
  const dir = await mkdtemp(join(tmpdir(), 'godwit-demo-'))
  const startedMs = performance.now()
  const interrupted = new AbortController()
  const stopListening = io.onInterrupt(() => interrupted.abort(new GodwitError('MIGRATION_CANCELLED', 'the demo was interrupted')))
  try {
    const problems: string[] = []
    const facts: Record<string, unknown> = {}
    for (const scene of scenes) {
      const folder = join(dir, scene)
      await mkdir(folder)
      const played = await play(scene, { dir: folder, io, say, isQuiet: isJson, seed, signal: interrupted.signal })
      for (const line of played.lines) say(line)
      for (const problem of played.problems) say(`WRONG: ${problem}`)
      problems.push(...played.problems)
      facts[scene] = played.facts
      if (scene !== scenes.at(-1)) say('')
    }
    const tookSeconds = (performance.now() - startedMs) / 1000
    say(`${problems.length === 0 ? 'all is well' : 'something is wrong'}; ${tookSeconds.toFixed(0)} s`)
    if (isJson) io.out(json({ ...facts, tookSeconds, problems, ok: problems.length === 0 }))
    return problems.length === 0 ? 0 : 1
  } finally {
    stopListening()
    if (isKept) say(`kept: ${dir}`)
    else await rm(dir, { recursive: true, force: true })
  }
}

async function play(scene: Scene, context: DemoContext): Promise<SceneResult> {
  if (scene === 'moves') return await (await import('./demo/moves.ts')).playMoves(context)
  return await (await import('./demo/drive.ts')).playDrive(context)
}
