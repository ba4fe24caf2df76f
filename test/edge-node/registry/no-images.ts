// A site without images, for parts of the registry that are tried alone.
import type { Images } from '../../../edge-node/disks/images.ts'
import { GodwitError } from '../../../wire/errors.ts'

const unknown = async (): Promise<never> => {
  throw new GodwitError('IMAGE_UNKNOWN', 'there is no image here')
}

export const noImages: Images = { list: async () => [], show: unknown, import: unknown, receive: unknown, remove: unknown, use: unknown }
