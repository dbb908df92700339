/* main.c is not part of the fuzz targets; this is what the others want of it. */
#include <stdlib.h>

#include "../../stem/stem.h"

void guest_channel_lost(void)
{
	abort();
}
