// The small files and folders that the registry keeps on this host, as one plain type: the simulation has its own.
// Enters: paths, texts. Leaves: the same, or the system's errors. Always holds: a text is on the disk when writeText
// resolves, whole or not at all.
import { chmod, mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises'

export type HostFiles = {
  /** With all folders above it; one that is there keeps its mode. */
  makeFolder(path: string, mode: number): Promise<void>
  setMode(path: string, mode: number): Promise<void>
  names(folder: string): Promise<string[]>
  readText(path: string): Promise<string>
  /** Mode 0600. */
  writeText(path: string, text: string): Promise<void>
  /** A folder with all in it. Harmless when there is none. */
  removeFolder(path: string): Promise<void>
}

export const hostFiles: HostFiles = {
  async makeFolder(path, mode) {
    await mkdir(path, { recursive: true, mode })
  },
  setMode: chmod,
  names: folder => readdir(folder),
  readText: path => readFile(path, 'utf8'),
  async writeText(path, text) {
    await writeFile(`${path}.new`, text, { mode: 0o600, flush: true })
    await rename(`${path}.new`, path)
  },
  removeFolder: path => rm(path, { recursive: true, force: true }),
}
